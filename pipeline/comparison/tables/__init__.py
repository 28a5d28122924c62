# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison, its CSV file and what it says in one sentence."""
