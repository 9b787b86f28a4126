"""Uses the Google key on every node of a cluster: python tests/engine/ray_key.py HOST:PORT

Prints {host: [account, whether the driver's key file is there]} as JSON; ends with its input.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dataset.state import State
from engine.ray.cluster import Cluster, key_file
from engine.ray.worker import Rows, use_key


def use(rows, path):
    import gcs

    use_key(ray.get(rows.key.remote()))
    return gcs.credentials().client_id, os.path.exists(path)


def main(address):
    State.create(Path("state.sqlite")).close()
    with Cluster(address) as cluster:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        rows = ray.remote(Rows).options(num_cpus=0, scheduling_strategy=here)
        rows = rows.remote(Path("state.sqlite").absolute(), np.arange(0), 1, key_file())
        found = {
            node["NodeManagerAddress"]: ray.remote(use)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(rows, str(key_file()))
            for node in cluster.nodes()
        }
        print(json.dumps({host: ray.get(answer) for host, answer in found.items()}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
