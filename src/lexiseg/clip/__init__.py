"""All contact with open_clip and timm: image trunks, projections and text towers by family."""
