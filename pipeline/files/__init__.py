# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, folders with one owner, hashes, spreadsheets."""
