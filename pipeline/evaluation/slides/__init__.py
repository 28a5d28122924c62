# SPDX-License-Identifier: Apache-2.0
"""Protocols of slides: one confusion matrix over all images, and scores of single images."""
