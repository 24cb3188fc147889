"""From a network to OpenVINO IR: what each graph is, how it is converted, edited and compressed."""
