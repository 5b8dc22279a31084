"""How processes share a network: whole in each (DDP), or a part of it in each (FSDP2).

Nothing else in inkdrop knows one from the other. The order of things:

    same_weights(network, processes)                  # for a module of one's own
    average = copy.deepcopy(network)                  # before it is shared
    parallel = Parallel(network, device, processes, "fsdp")
    parallel.place(average)
    parameters = dict(network.named_parameters())     # after that: sharing replaces them
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InkdropError
from ..processes import Processes
from ..sharded_files import local, share_like

_DDP = inspect.signature(DistributedDataParallel).parameters
_BUFFERS_STAY: dict[str, Any] = {  # torch 2.13 gave it another name
    next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _DDP): False
}


class Parallel:
    """A network on its device, shared among processes; for one process, just the network.

    Gradients are averaged over the processes. With "fsdp" every forward pass is collective: all
    processes must call the network equally often, for a loss or for samples.

    Args:
        network: equal on all processes (`same_weights`), not on a GPU yet if it is to be shared in
            parts.
        device: this process's.
        processes: the job.
        kind: "ddp" or "fsdp".
        unused: whether some parameters may get no gradient. With "ddp" they may differ between
            processes; with "fsdp" they must be the same.

    Attributes:
        network: the network itself, with the parameters and their names; changed in place.
        module: what to call in training.
        sharded: whether parameters are DTensors, of which each process holds a part.

    Raises:
        InkdropError: for a module that cannot be shared in parts.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        processes: Processes,
        kind: str = "ddp",
        unused: bool = False,
    ) -> None:
        self.network = self.module = network
        self.device = device
        self.processes = processes
        self.sharded = kind == "fsdp" and processes.size > 1
        self._mesh: Any = None
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh

            self._mesh = init_device_mesh(device.type, (processes.size,))
        self.place(network)
        if processes.size > 1 and not self.sharded and _trains(network):
            # Of 1×1 convolutions, whose strides mean nothing; all it costs is a copy of these.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            self.module = DistributedDataParallel(
                network,
                find_unused_parameters=unused,
                gradient_as_bucket_view=True,
                **_BUFFERS_STAY,
            )

    def place(self, network: nn.Module) -> None:
        """Put another network of the same making on the device, shared in parts as this one is.

        It is never whole on the device.
        """
        if self._mesh is None:
            network.to(self.device)
        else:
            _share_in_parts(network, self._mesh)

    def backward_context(self, last: bool) -> AbstractContextManager[None]:
        """For the forward and backward pass of a part of a batch: whether it is the last.

        Gradients of the parts before it are summed here, and reduced over processes with its own.
        """
        if last or (self.module is self.network and not self.sharded):
            return nullcontext()
        if isinstance(self.module, DistributedDataParallel):
            unsynchronised: AbstractContextManager[None] = self.module.no_sync()
            return unsynchronised
        return self._without_reduction()

    @contextmanager
    def _without_reduction(self) -> Iterator[None]:
        module: Any = self.module
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients to a norm of at most `limit`, and return what it was, on the device.

        As `nn.utils.clip_grad_norm_` of the whole network, on every process alike. Collective for a
        network in parts.
        """
        parameters = list(parameters)
        if not self.sharded:
            whole: Tensor = nn.utils.clip_grad_norm_(parameters, limit).detach()
            return whole
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        own = nn.utils.get_total_norm(gradients).to(self.device)
        norm: Tensor = torch.linalg.vector_norm(self.processes.gather_equal(own.reshape(1)))
        if gradients:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


def same_weights(network: nn.Module, processes: Processes) -> None:
    """Give every process the first one's parameters and buffers; collective."""
    own = network.state_dict()
    for name, tensor in processes.tensors_of_first(own if processes.first else None).items():
        own[name].copy_(tensor)


def load_full(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load whole tensors, which every process has, into a network that may be in parts.

    Raises:
        RuntimeError: for other names or shapes than the module's, as `load_state_dict` does.
    """
    own = module.state_dict()
    module.load_state_dict(
        {name: share_like(t, own[name]) if name in own else t for name, t in tensors.items()}
    )


def _trains(network: nn.Module) -> bool:
    return any(p.requires_grad for p in network.parameters())


def _share_in_parts(network: nn.Module, mesh: Any) -> None:
    """FSDP2 on each block of a network, then on what remains of it.

    Blocks are what stands in its lists (`nn.ModuleList`): those of the U-Net and of the MLP do, and
    those of most modules that people write. Only one of them is whole at a time.
    """
    from torch.distributed.fsdp import fully_shard

    lists = (nn.ModuleList, nn.ModuleDict)
    blocks: list[nn.Module] = []
    # A parameter that stands in two places stays one parameter only within one group.
    places = list(network.named_parameters(remove_duplicate=False))
    if len(places) == len(list(network.parameters())):
        for module in network.modules():
            if isinstance(module, nn.ModuleList):
                blocks += [m for m in module if not isinstance(m, lists) and _has_parameters(m)]
    try:
        for block in (*reversed(blocks), network):
            block.register_forward_hook(_no_view)
            # Gathered again for the backward pass, the outermost too: after a forward pass alone,
            # as samples take, nothing stays gathered that would then miss the next update.
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    except ValueError as error:
        raise InkdropError(
            f"{type(network).__name__} cannot be shared in parts "
            f"({str(error).splitlines()[0]}): use --training.parallel ddp"
        ) from error


def _no_view(module: nn.Module, inputs: Any, output: Any) -> Any:
    """An in-place operation on a view would drop the hook that gathers for the backward pass."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
