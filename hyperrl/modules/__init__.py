"""Every nn.Module of HyperRL and the LightningModule that trains them. Never imports `hyperrl.data`."""
