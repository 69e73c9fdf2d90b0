"""A stand-in for the provider hashicorp/google: it knows `google.yaml`, and answers nothing else.

Terraform starts it as a plugin to learn the schema; in `terraform test` with a mock provider nothing is ever
created. Runs in the environment that has the `tf` wheel, not in the project's own.
"""

import sys
from pathlib import Path

import yaml
from tf.gen import tfplugin_pb2 as pb
from tf.iface import DataSource, Provider, Resource
from tf.runner import run_provider
from tf.schema import Attribute, Block, NestedBlock, Schema
from tf.types import Bool, List, Map, Number, Set, String

PLAIN = {"string": String, "bool": Bool, "number": Number}


class ListBlock(NestedBlock):
    """A nested block as a list, which the wheel does not have."""

    def __init__(self, name, block, most):
        super().__init__(name, None, block, max_items=most)

    def to_pb(self):
        return pb.Schema.NestedBlock(
            type_name=self.type_name,
            block=self.block.to_pb(),
            max_items=self.max_items or 0,
            nesting=pb.Schema.NestedBlock.NestingMode.LIST,
        )

    def encode(self, value):
        return value

    def decode(self, value):
        return value

    def semantically_equal(self, a_decoded, b_decoded):
        return a_decoded == b_decoded


def attribute(name, text):
    how = text[-1] if text[-1] in "!=~" else ""
    kind = text.rstrip("!=~")
    wrappers = {"[": List, "<": Set, "{": Map}
    wrapper = wrappers.get(kind[0])
    inner = PLAIN[kind.strip("[]<>{}")]()
    return Attribute(
        name,
        wrapper(inner) if wrapper else inner,
        required=how == "!",
        optional=how in ("", "~"),
        computed=how in ("=", "~"),
    )


def block(described):
    attributes, blocks = [], []
    for name, what in described.items():
        if not name.startswith("+"):
            attributes.append(attribute(name, what))
            continue
        most = 1 if name[1] == "1" else None
        attributes_, blocks_ = block(what or {})
        blocks.append(ListBlock(name.lstrip("+1"), Block(attributes_, blocks_), most))
    return attributes, blocks


class StandIn(Provider):
    """Everything in google.yaml, and a provider block with what versions.tf sets."""

    def get_model_prefix(self):
        return ""

    def full_name(self):
        return "registry.terraform.io/hashicorp/google"

    def get_provider_schema(self, diags):
        return Schema(
            [
                Attribute("project", String(), optional=True),
                Attribute("region", String(), optional=True),
                Attribute("default_labels", Map(String()), optional=True),
            ]
        )

    def validate_config(self, diags, config):
        """Accept it."""

    def configure_provider(self, diags, config):
        raise NotImplementedError(
            "a stand-in configures nothing: only mocked tests and validation are for it"
        )

    def get_data_sources(self) -> list[type[DataSource]]:
        return []

    def get_resources(self) -> list[type[Resource]]:
        described = yaml.safe_load((Path(__file__).parent / "google.yaml").read_text())
        return [resource(name, what) for name, what in described.items()]


def resource(name, described):
    attributes, blocks = block(described)

    class Described(Resource):
        def __init__(self, provider):
            pass

        @classmethod
        def get_name(cls):
            return name

        @classmethod
        def get_schema(cls):
            return Schema(attributes, block_types=blocks)

        def validate(self, diags, type_name, config):
            """Terraform itself has held it against the schema."""

        def refuse(self, *_):
            raise NotImplementedError("a stand-in makes nothing")

        create = read = update = delete = refuse

    return Described


if __name__ == "__main__":
    run_provider(StandIn(), sys.argv)
