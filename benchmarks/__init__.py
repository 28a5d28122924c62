# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what things cost. They print figures and never fail on a slow machine."""
