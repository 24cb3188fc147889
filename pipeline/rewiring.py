"""Editing OpenVINO graphs: who reads a node, and giving its readers something else to read."""

import openvino as ov


def readers(node: ov.Node) -> list[ov.Node]:
    """The nodes that read a node's first output, by name: OpenVINO gives them in the order of their addresses."""
    found = [port.get_node() for port in node.output(0).get_target_inputs()]
    return sorted(found, key=lambda reader: reader.get_friendly_name())


def replace(node: ov.Node, value: ov.Node) -> None:
    """Let every reader of `node` read `value`."""
    for port in node.output(0).get_target_inputs():
        port.replace_source_output(value.output(0))
