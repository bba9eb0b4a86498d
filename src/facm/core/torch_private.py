"""All uses of private names of PyTorch, seen on PyTorch 2.11 to 2.13, and of peft 0.21. No other file touches one.

When a new version of PyTorch breaks the package, the cause is most likely here. Each function says why no public name
does its work.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # documented, but only under this name
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten  # no public nested containers yet

__all__ = ["TorchDispatchMode", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Forward-mode differentiation


def inside_dual_level() -> bool:
    """Whether a ``dual_level`` is open: only then may ``unpack_dual`` be called, and nothing public tells."""
    return fwd._current_level >= 0


def inside_functorch() -> bool:
    """Whether a ``torch.func`` transform is running, inside which nothing may be checkpointed; nothing public tells."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def functorch_level() -> int | None:
    """How deep ``torch.func`` transforms are nested here; None outside of them."""
    return torch._C._functorch.maybe_current_level()


def forward_mode_enabled() -> AbstractContextManager[Any]:
    """Switch forward mode on inside ``torch.inference_mode``, where otherwise no tangent can even be read."""
    return fwd._set_fwd_grad_enabled(True)


def dual_functions() -> frozenset[Any]:
    """The functions that a torch-function mode sees when a dual number is packed or unpacked; both are private."""
    return frozenset({torch._unpack_dual, torch._make_dual})


# Torch-function modes


def without_torch_function() -> AbstractContextManager[Any]:
    """Hide the operations inside from all torch-function modes; the public switch is for tensor subclasses only."""
    return torch._C.DisableTorchFunction()


def tensor_attributes() -> frozenset[Any]:
    """What a torch-function mode sees when an attribute such as ``x.shape`` is read or set.

    The attributes are defined on a private base class of ``torch.Tensor``.
    """
    described = (p for p in vars(torch._C.TensorBase).values() if type(p).__name__ == "getset_descriptor")
    return frozenset(method for p in described for method in (p.__get__, p.__set__))


def backward(loss: Tensor) -> None:
    """``loss.backward()`` with all torch-function modes active inside.

    The public function is itself a torch function, so that it leaves the modes; the second forward pass of activation
    checkpointing would then run without them.
    """
    torch.autograd.graph._engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


# Compilation


def compiler_is_loaded() -> bool:
    """Whether anything can have been compiled; asking the compiler itself would import it, which takes 1.5 s."""
    return "torch._dynamo" in sys.modules


def eager_when_differentiated(value: Tensor) -> None:
    """Run compiled functions eagerly during backward passes through ``value``, where checkpointing calls them again.

    Nothing public runs at the end of a backward pass.
    """

    def begin(gradient: Tensor) -> None:
        stance = torch.compiler.set_stance("force_eager")
        if stance.prev.stance != "force_eager":
            torch.autograd.Variable._execution_engine.queue_callback(lambda: stance.__exit__(None, None, None))

    value.register_hook(begin)


@contextlib.contextmanager
def before_scripted_calls(check: Callable[[str, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Call ``check(name, args, kwargs)`` before every function or method that ``torch.jit`` made.

    No torch-function mode sees such a call, so the types' ``__call__`` are replaced inside the context.
    """
    kept = [(kind, kind.__call__) for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod)]

    def checked(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(self: Any, *args: Any, **kwargs: Any) -> Any:
            check(str(self.name), args, kwargs)
            return call(self, *args, **kwargs)

        return instead

    for kind, call in kept:
        kind.__call__ = checked(call)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, call in kept:
            kind.__call__ = call  # type: ignore[method-assign]


def compiled_call(module: Any) -> Callable[..., Any] | None:
    """What ``module.compile()`` left to be called in place of the module's forward; None before it."""
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """Set what :func:`compiled_call` returns; nothing public runs a compiled module eagerly for a while."""
    module._compiled_call_impl = call


def compiled_from(module: Any) -> nn.Module | None:
    """The module that ``torch.compile(module)`` was made of; None for any other."""
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None


def constant_under_compile(function: Function) -> Function:
    """``torch.compiler.assume_constant_result`` without its import of the compiler, which takes 1.5 s."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def allow_many_shapes() -> None:
    """Let one function be compiled for 128 shapes and settings, which blocks of a U-Net reach together: above 8, the
    rest would run eagerly without a word. ``torch.compile`` has an argument for it only from 2.13 on."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, 128)


def traced_by_running(function: Function) -> Function:
    """``function`` as one call in compiled code, into which AOTAutograd traces by running it; its arguments are tensors
    in tuples. The public ``allow_in_graph`` takes no tuples. Importing the compiler takes 1.5 s."""
    import torch._dynamo

    return torch._dynamo.nonstrict_trace(function)  # type: ignore[return-value]


# Modules


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook runs when ``module`` is called, or in the backward pass; nothing public lists them."""
    of_module = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, of_module))


def module_bookkeeping(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A module's own parameters, buffers and children, None among them, and its attributes that are none of these.

    The public iterators leave out what is None.
    """
    others = {name: value for name, value in vars(module).items() if name not in vars(_PLAIN)}
    others.pop("_compiled_call_impl", None)
    return module._parameters, module._buffers, module._modules, others


_PLAIN = nn.Module()


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Put ``forward`` on the instance, so that calling the module runs it inside all hooks; returns an undo.

    FSDP2's public ``register_fsdp_forward_method`` runs another method inside the hooks of a sharded module only; DDP
    and activation checkpointing have no such thing.
    """
    before = vars(module).get("forward")  # another replacement, such as activation checkpointing's

    def undo() -> None:
        if before is None:
            vars(module).pop("forward", None)
        else:
            vars(module)["forward"] = before

    vars(module)["forward"] = forward
    return undo


def map_tensors(module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Replace all parameters and buffers by ``function`` of them; ``to`` and ``to_empty`` treat all of them alike."""
    module._apply(function)


# Attention


def fused_attention_choice(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float | None) -> int:
    """The value of the ``SDPBackend`` that ``scaled_dot_product_attention`` would choose for these inputs."""
    return torch._fused_sdp_choice(q, k, v, None, 0.0, is_causal, scale=scale)


def cpu_flash_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (B, H, N, D) and its log-sum-exp (B, H, N); the public function returns no log-sum-exp."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)
    return out, lse


def flash_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The same on CUDA; D must be a multiple of 8."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)
    return out, lse


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The same with a log-sum-exp (B, H, N'), where N' >= N is a multiple of 32."""
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = attention(q, k, v, None, True, 0.0, is_causal, scale=scale)
    return out, lse


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The same with a log-sum-exp (B, H, N, 1)."""
    attention = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = attention(q, k, v, None, True, 0.0, is_causal, False, scale=scale)
    return out, lse


# Norms and activations


def rms_norm_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms (..., D) and 1 / rms (..., 1) of x (..., D); the public function does not return the second."""
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        out, root = torch.ops.aten._fused_rms_norm(x, (x.shape[-1],), None, eps)
        return out, root.to(x.dtype)
    root = rms_norm_root(x, eps)
    return x * root, root


def rms_norm_root(x: Tensor, eps: float) -> Tensor:
    """1 / rms (..., 1) of x (..., D), in at least float32."""
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_backward(gradient: Tensor, x: Tensor, root: Tensor) -> Tensor:
    """r (g - h mean(h g)), h = x r: J g of x / rms, whose Jacobian J is symmetric; (..., D) like all but root (..., 1).

    root: In at least float32, as everything is computed; the kernels of a GPU take and return half precision.
    Nothing public runs a norm's backward kernel. Layer norm's with mean 0 differs by r mean(g).
    """
    shape = (x.shape[-1],)
    if x.device.type == "cpu":
        gradient, x = gradient.to(root.dtype), x.to(root.dtype)
        out = torch.ops.aten.native_layer_norm_backward(
            gradient, x, shape, torch.zeros_like(root), root, None, None, (True, False, False)
        )[0]
        return out.add_(gradient.mean(-1, keepdim=True).mul_(root))
    if x.device.type in ("cuda", "meta") and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        root = root if x.dtype == torch.float64 else root.float()
        return torch.ops.aten._fused_rms_norm_backward(gradient, x, shape, root, None, (True, False))[0]
    h = x * root
    return (gradient - h * (h * gradient).mean(-1, keepdim=True)) * root


def layer_norm_backward(gradient: Tensor, x: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    """J g of a layer norm without weight over the last dimensions ``shape``."""
    _, mean, root = torch.native_layer_norm(x, shape, None, None, eps)
    kernel, wanted = torch.ops.aten.native_layer_norm_backward, (True, False, False)
    return kernel(gradient, x, shape, mean, root, None, None, wanted)[0]


def group_norm_backward(gradient: Tensor, x: Tensor, groups: int, eps: float) -> Tensor:
    """J g of a group norm without weight of x (B, C, ...)."""
    sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), groups)
    _, mean, root = torch.native_group_norm(x, None, None, *sizes, eps)
    kernel, wanted = torch.ops.aten.native_group_norm_backward, (True, False, False)
    return kernel(gradient, x, mean, root, None, *sizes, wanted)[0]


def softmax_backward(gradient: Tensor, y: Tensor, dim: int) -> Tensor:
    return torch.ops.aten._softmax_backward_data(gradient, y, dim, y.dtype)


def gelu_backward(gradient: Tensor, x: Tensor, approximate: str) -> Tensor:
    return torch.ops.aten.gelu_backward(gradient, x, approximate=approximate)


def sigmoid_backward(gradient: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(gradient, y)


def tanh_backward(gradient: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(gradient, y)


def silu_backward(gradient: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """g silu'(x), written into ``out``, which may be g."""
    return torch.ops.aten.silu_backward(gradient, x, grad_input=out)


# Dispatch


def storage_key(tensor: Tensor) -> int:
    """A number that two tensors share while they share memory, also on the meta device, where addresses are 0."""
    return tensor.untyped_storage()._cdata


def is_view(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a view of another in the eyes of autograd."""
    return tensor._is_view()


def overload_packet(operation: Any) -> Any:
    """``aten.mm`` of ``aten.mm.default``: the key under which the public table of FLOP counts lists an operation."""
    return operation._overloadpacket


def kept_in_float32(kind: type) -> tuple[str, ...]:
    """Parts of names of layers that diffusers' ``from_pretrained`` leaves in float32, whatever type it is asked for."""
    return tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())


def switch_adapters(layers: Iterable[Any], off: bool) -> None:
    """Switch peft's adapters off or on. Its public ``enable_adapters`` also changes ``requires_grad``, which optimiser,
    averages and DDP must not see change within a step."""
    for layer in layers:
        layer._disable_adapters = off
