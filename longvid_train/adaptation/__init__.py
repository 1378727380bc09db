"""An adaptation: what one YAML file says about reading longer videos with a model that was not trained for them."""
