"""What the pipeline measures of graphs and speech, and the bounds that it holds them to."""
