# SPDX-License-Identifier: Apache-2.0
"""Trained networks in the forms that other programs take."""
