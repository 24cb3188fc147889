"""What leaves: a bundle's layout and attestations, its model card, the release folder, the Hub."""
