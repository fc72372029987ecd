"""Parameters and multiply-accumulates of the models that ``fgvc models`` lists.

    python benchmarks/model_costs.py            # compare with what is recorded
    python benchmarks/model_costs.py --write    # record: fgvc_cli/models/costs.json

Shapes only: no weights are needed, and the machine does not matter. tests/models/test_cost.py holds
some of the recorded figures against a new count.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from fgvc_cli.models.catalog import COSTS_FILE, LISTED
from fgvc_cli.models.registry import compute_cost


def main() -> None:
    """Count, print, and write or compare; exits with 1 where the record differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    counted = {}
    for name, input_px in LISTED.items():
        row = asdict(compute_cost(name, input_px))
        row["gmac"] = round(row["gmac"], 3)
        print(row)
        counted[row.pop("name")] = row
    if arguments.write:
        COSTS_FILE.write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")
    elif json.loads(COSTS_FILE.read_text(encoding="utf-8")) != counted:
        raise SystemExit(f"{COSTS_FILE} says otherwise: python benchmarks/model_costs.py --write")


if __name__ == "__main__":
    main()
