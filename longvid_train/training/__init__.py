"""Stages, the LightningModule, callbacks."""
