"""What the shop sells."""

ITEMS = {
    "rope": {"name": "Drawbridge rope, 20 m", "cents": 4200, "stock": 12},
    "grate": {"name": "Portcullis grate", "cents": 18900, "stock": 3},
    "lantern": {"name": "Watchtower lantern", "cents": 2650, "stock": 41},
    "duck": {"name": "Moat duck", "cents": 900, "stock": 7},
}
