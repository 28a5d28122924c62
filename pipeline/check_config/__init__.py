# SPDX-License-Identifier: Apache-2.0
"""Reads a bundle config without running it, and lists what would run that is not on a list of harmless names.

MONAI calls every `_target_` and evaluates every `$` of a config: a config is a program. What passes here uses only
functions and classes that train and measure; the list is short, so a harmless config may be refused. It is a guard
against surprises, no sandbox.
"""

from pipeline.check_config.config import Finding, find, find_in_each
from pipeline.check_config.trust import TRUSTED, is_trusted, refuse_untrusted

__all__ = ["TRUSTED", "Finding", "find", "find_in_each", "is_trusted", "refuse_untrusted"]
