"""Everything that makes or cuts data. Never imports `hyperrl.modules`."""
