"""The contracts that `hyperrl.testing` checks, one file each."""
