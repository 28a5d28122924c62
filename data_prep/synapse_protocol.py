# SPDX-License-Identifier: Apache-2.0
"""The published Synapse protocol: eight organs of the BTCV abdomen challenge, 18 training cases and 12 test cases."""

from __future__ import annotations

LABELS = {
    0: "background",
    1: "aorta",
    2: "gallbladder",
    3: "left kidney",
    4: "right kidney",
    5: "liver",
    6: "pancreas",
    7: "spleen",
    8: "stomach",
}

# BTCV numbers 13 organs. Oesophagus 5, vena cava 9, portal and splenic vein 10 and the adrenals 12, 13 are background.
BTCV_LABELS = range(14)
BTCV_TO_SYNAPSE = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}

# Case number to slices: 2211 training slices in all.
TRAINING_SLICES = {
    "case0005": 117,
    "case0006": 131,
    "case0007": 163,
    "case0009": 149,
    "case0010": 148,
    "case0021": 143,
    "case0023": 96,
    "case0024": 124,
    "case0026": 131,
    "case0027": 88,
    "case0028": 89,
    "case0030": 153,
    "case0031": 93,
    "case0033": 104,
    "case0034": 98,
    "case0037": 99,
    "case0039": 90,
    "case0040": 195,
}
TRAINING = tuple(TRAINING_SLICES)
TEST = tuple(f"case{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38))
# The protocol has no validation split; these three were drawn once, by random.Random(0).sample(TRAINING, 3), so that
# the model is chosen without a look at the test cases.
VALIDATION = ("case0006", "case0031", "case0033")
