"""botocore's own parser reads the recorded answers of `crates/control/src/ec2/testdata`.

Needs no service. Says what of an answer a client would not see: elements that the model of the
API does not know, and values that are not of their type.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

import botocore.parsers
import botocore.session

ANSWERS = pathlib.Path(__file__).resolve().parents[2] / "crates/control/src/ec2/testdata"
# Not of the output: the request's id, and what EC2 answers where there is nothing to say.
UNMODELLED = {"requestId", "return", "ResponseMetadata"}


def parsed(path):
    """The parser's result, the model's output, and whether the answer is a refusal."""
    refusal = path.stem.endswith(".error")
    operation = path.stem.removesuffix(".error")
    service = "sts" if operation == "GetCallerIdentity" else "ec2"
    model = botocore.session.get_session().get_service_model(service)
    output = model.operation_model(operation).output_shape
    parser = botocore.parsers.create_parser(model.metadata["protocol"])
    answer = {"body": path.read_bytes(), "headers": {}, "status_code": 400 if refusal else 200}
    return parser.parse(answer, output), output, refusal


def unknown(element, shape, at):
    """Elements below this one that the model does not know."""
    if shape is None or shape.type_name not in ("structure", "list"):
        return []
    if shape.type_name == "list":
        return [u for item in element for u in unknown(item, shape.member, f"{at}/item")]
    members = {s.serialization.get("name", n): s for n, s in shape.members.items()}
    found = []
    for child in element:
        name = child.tag.split("}")[-1]
        if name in UNMODELLED:
            continue
        if name not in members:
            found.append(f"{at}/{name}")
        else:
            found += unknown(child, members[name], f"{at}/{name}")
    return found


def faults(path):
    result, output, refusal = parsed(path)
    if refusal:
        whole = result.get("Error", {}).get("Code") and result["Error"].get("Message")
        return [] if whole else ["no code or message"]
    found = [] if result["ResponseMetadata"].get("RequestId") else ["no request id"]
    root = ElementTree.fromstring(path.read_bytes())
    wrapper = output.serialization.get("resultWrapper") if output else None
    if root[0].tag.endswith("Result"):
        root = root[0]
    found += unknown(root, output, wrapper or "")
    if output is not None and path.stem != "DescribeVolumes" and len(result) < 2:
        found.append("nothing was parsed")
    return found


def main():
    paths = sorted(ANSWERS.glob("*.xml"))
    failed = 0
    for path in paths:
        try:
            found = faults(path)
        except Exception as error:
            found = [repr(error)]
        if found:
            failed += 1
            print(f"FAIL {path.name}: {found}")
    print(f"{len(paths) - failed} passed, {failed} failed")
    sys.exit(1 if failed or not paths else 0)


if __name__ == "__main__":
    main()
