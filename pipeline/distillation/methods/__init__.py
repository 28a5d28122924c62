# SPDX-License-Identifier: Apache-2.0
"""Methods of distillation, each in a file of its own, and what several of them share."""
