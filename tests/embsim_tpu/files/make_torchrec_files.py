"""Small state_dicts by TorchRec itself, each with what PyTorch reads from it (.npz).

Made with torchrec 1.8.0, torch 2.13.0, fbgemm-gpu-cpu 1.8.0 and numpy 2.4.6 (torchrec asks for the
fbgemm-gpu of CUDA, hence --no-deps):

    python -m venv .venv-files && .venv-files/bin/pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 \
        tensordict==0.13.0 iopath lightning-utilities pyre-extensions tqdm numpy==2.4.6
    .venv-files/bin/pip install --no-deps torchrec==1.8.0 torchmetrics==1.0.3
    .venv-files/bin/python tests/embsim_tpu/files/make_torchrec_files.py

collections       a model with an EmbeddingBagCollection in float16, bfloat16 and float32, an
                  EmbeddingCollection and a dense layer
fused             FusedEmbeddingBagCollection after a step of rowwise Adagrad
parallel          DistributedModelParallel after a step of Adagrad, sharded by tables, gathered
keyed             a KeyedOptimizerWrapper of Adam after a step
"""

import os
from pathlib import Path

import numpy as np
import torch
import torchrec
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizerWrapper

FILES = Path(__file__).parent / "torchrec"


def table(name, rows, kind=torchrec.EmbeddingBagConfig, data_type=DataType.FP32):
    return kind(
        name=name,
        num_embeddings=rows,
        embedding_dim=4,
        feature_names=[f"f_{name}"],
        data_type=data_type,
    )


def tables():
    return [table("item", 13), table("user_age", 5)]


class Model(torch.nn.Module):
    def __init__(self, bags):
        super().__init__()
        self.bags = bags
        self.over = torch.nn.Linear(8, 1)

    def forward(self, features):
        return self.over(self.bags(features).values())


def features():
    """Two samples: items 1 3 3 and none; ages 4 and 0."""
    ids, lengths = torch.tensor([1, 3, 3, 4, 0]), torch.tensor([3, 0, 1, 1])
    return torchrec.KeyedJaggedTensor(["f_item", "f_user_age"], ids, lengths=lengths)


def collections():
    model = torch.nn.Module()
    model.sparse = torchrec.EmbeddingBagCollection(
        [
            table("item", 13, data_type=DataType.FP16),
            table("user_age", 5, data_type=DataType.BF16),
            table("shop", 3),
        ]
    )
    model.sequence = torchrec.EmbeddingCollection([table("seen", 7, torchrec.EmbeddingConfig)])
    model.over = torch.nn.Linear(4, 1)
    return model.state_dict(), None


def fused():
    model = FusedEmbeddingBagCollection(
        tables(), torchrec.optim.RowWiseAdagrad, {"lr": 0.1, "eps": 1e-8}
    )
    (model(features()).values() ** 2).sum().backward()
    return model.state_dict(), model.fused_optimizer().state_dict()


def parallel():
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    torch.distributed.init_process_group("gloo")
    model = Model(torchrec.EmbeddingBagCollection(tables()))
    _apply_optimizer_in_backward(torch.optim.Adagrad, model.bags.parameters(), {"lr": 0.1})
    constraint = ParameterConstraints(sharding_types=["table_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(1, "cpu"), constraints={"item": constraint, "user_age": constraint}
    )
    sharder = EmbeddingBagCollectionSharder()
    plan = planner.collective_plan(model, [sharder], torch.distributed.group.WORLD)
    model = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=[sharder]
    )
    (model(features()) ** 2).sum().backward()
    optimizer = model.fused_optimizer.state_dict()
    optimizer["state"] = {key: gathered(state) for key, state in optimizer["state"].items()}
    return gathered(model.state_dict()), optimizer


def gathered(state):
    whole = {}
    for key, value in state.items():
        if isinstance(value, torch.distributed._shard.sharded_tensor.ShardedTensor):
            whole[key] = torch.empty(value.size(), dtype=value.dtype)
            value.gather(out=whole[key])
        else:
            whole[key] = value
    return whole


def keyed():
    model = Model(torchrec.EmbeddingBagCollection(tables()))
    optimizer = KeyedOptimizerWrapper(dict(model.named_parameters()), torch.optim.Adam)
    (model(features()) ** 2).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def main():
    FILES.mkdir(exist_ok=True)
    for make in (collections, fused, parallel, keyed):
        torch.manual_seed(0)
        state, optimizer = make()
        torch.save({"model": state, "optimizer": optimizer}, FILES / f"{make.__name__}.pt")
        arrays = {key: value.detach().float().numpy() for key, value in state.items()}
        for key, slots in (optimizer or {"state": {}})["state"].items():
            for slot, value in slots.items():
                arrays[f"{key} {slot}"] = value.detach().float().numpy()
        np.savez(FILES / f"{make.__name__}.npz", **arrays)
        print(make.__name__, {key: array.shape for key, array in arrays.items()})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
