# SPDX-License-Identifier: Apache-2.0
"""Trained networks as files for other runtimes, written only if they segment as the network itself does."""
