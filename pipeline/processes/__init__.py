# SPDX-License-Identifier: Apache-2.0
"""Several processes: torch.distributed, lost ranks, terms of the global batch."""
