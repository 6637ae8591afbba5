"""Names of slices and what they stand for; with libtpu, a program compiled for one."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2s_jax.plan.compiled import measure
from l2s_jax.plan.planned import Planned
from l2s_jax.plan.programs import programs_of
from l2s_jax.plan.subject import Subject
from l2s_jax.plan.topologies import CHIPS, SLICES, here, one_host, slices, topology
from l2s_jax.sharding import MeshConfig
from tests.training.stage2 import POLICY, grpo_run

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: the extra plan"
)


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5e", "with a shape, such as v5e:4x4"),
        ("v9:2x2", "one of v5e, v6e, v5p"),
        ("v5e:2x2x1", "has a shape such as 2x2"),
        ("v5p:2x2", "has a shape such as 2x2x2"),
        ("0*v5e:2x2", "v5e:4x4"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        topology(name)


def test_slices_grow():
    for generation in CHIPS:
        sizes = [np.prod([int(n) for n in s.split(":")[1].split("x")]) for s in slices(generation)]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    assert set(SLICES) == set(CHIPS)


def test_this_machine():
    found = here()
    assert found.devices == tuple(jax.devices()) and found.num_hosts == 1
    assert found.chip.memory_bytes is not None and found.chip.flops is None


@needs_libtpu
@pytest.mark.parametrize(
    "name, chips, hosts", [("v5e:1x1", 1, 1), ("v6e:2x4", 8, 1), ("2*v5e:4x4", 32, 8)]
)
def test_slices_that_need_not_exist(name, chips, hosts):
    found = topology(name)
    assert (found.num_chips, found.num_hosts) == (chips, hosts)
    assert {device.platform for device in found.devices} == {"tpu"}


@needs_libtpu
@pytest.mark.parametrize(
    "name, host", [("v5e:4x8", "v5e:2x2"), ("2*v5p:2x2x4", "v5p:2x2x1"), ("v6e:2x4", "v6e:2x4")]
)
def test_one_of_a_slices_hosts(name, host):
    place = topology(name)
    found = one_host(place)
    of_first = [device for device in place.devices if device.process_index == 0]
    assert (found.name, found.num_hosts, found.chip) == (host, 1, place.chip)
    assert found.num_chips == len(of_first)


@needs_libtpu
def test_a_host_of_several_samples_by_itself(tmp_path, monkeypatch):
    """The compiler takes a program for all chips of a slice, and none for some of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg = grpo_run(mesh=MeshConfig(data=1, fsdp=8, tensor=2), dtype="bfloat16")
    place = topology("v5e:4x4")
    made = programs_of(cfg, Subject(policy=POLICY), place).programs
    sampling = {planned.name: planned for planned in made if planned.mesh.size < place.num_chips}
    assert set(sampling) == {"sampler begins", "prefill", "decode"}
    assert {planned.mesh.shape["tensor"] for planned in sampling.values()} == {2}
    report = measure(sampling["decode"], place)
    assert report.fits(place) and report.cost is not None and report.cost.flops > 0
    [update] = (planned for planned in made if planned.name == "update")
    assert set(update.beside) == {"behaviour"}  # nothing is sampled meanwhile


def product(size, num_chips, place):
    """One matrix product on a slice, its left side cut over the chips."""
    mesh = Mesh(np.asarray(place.devices[:num_chips]), ("rows",))
    left, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
    a = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=left)
    b = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=whole)
    program = jax.jit(lambda a, b: a @ b, out_shardings=whole)
    return Planned(
        name="product",
        trace=lambda: program.trace(a, b),
        arguments={"a": a, "b": b},
        beside={},
        mesh=mesh,
    )


@needs_libtpu
def test_a_program_is_compiled_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = topology("v5e:2x2")
    planned = product(1024, 4, place)
    report = measure(planned, place)
    assert report.fits(place) and not report.remembered
    assert report.memory.arguments == 1024 * 1024 * 2 * 5 // 4
    assert report.cost is not None and report.cost.flops == 2 * 1024**3 / 4
    assert set(report.cost.link_bytes) == {"all-gather"}
    again = measure(planned, place)
    assert again.remembered and again.memory == report.memory and again.cost == report.cost
    too_large = measure(product(128 * 1024, 4, place), place)
    assert not too_large.fits(place) and too_large.memory.peak > place.chip.memory_bytes
