# SPDX-License-Identifier: Apache-2.0
"""The networks of the paper, one file each, and the paraphraser of Graph Flow."""
