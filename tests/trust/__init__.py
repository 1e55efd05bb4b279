"""Tests of layer 2: signatures, trust roots, bundles, schemas, versions, policy and validation."""
