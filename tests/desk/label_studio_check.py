"""Run by label-studio-sdk's own Python: its validator and its converter on what the desk wrote."""

import json
import sys
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

folder = Path(sys.argv[1])
config = (folder / "config.xml").read_text(encoding="utf-8")
tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
interface = LabelInterface(config)
interface.validate()
valid = 0
for task in tasks:
    assert interface.validate_task({"data": task["data"]}), task
    for annotation in task["annotations"]:
        assert interface.validate_annotation(annotation), annotation
        valid += 1
wrong = json.loads(json.dumps(tasks[0]["annotations"][0]))
wrong["result"][0]["value"]["choices"] = ["dog"]
converter = Converter(config, str(folder), download_resources=False)
for i, task in enumerate(tasks):  # as an export has them
    task["id"] = i
    for j, annotation in enumerate(task["annotations"]):
        annotation |= {"id": 10 * i + j, "completed_by": {"email": "x@y.z"}}
(folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
converter.convert(str(folder / "tasks.json"), str(folder / "out"), "CSV", is_dir=False)
print(json.dumps({"valid": valid, "a wrong choice": bool(interface.validate_annotation(wrong))}))
