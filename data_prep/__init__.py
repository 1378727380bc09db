"""From public sources to training manifests: one module per source."""
