"""The front door of the library: any two models, distilled in somebody else's loop."""
