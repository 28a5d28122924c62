# SPDX-License-Identifier: Apache-2.0
"""Readers and writers of volumes: NIfTI, NRRD, MetaImage and DICOM series, and their grids in space."""
