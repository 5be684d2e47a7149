"""What is read, and how often: bytes counted by TensorStore's own metrics against the boxes' sizes."""

import itertools
import threading

import numpy as np
import pytest

from weathermixer.archive import storage
from weathermixer.archive.boxes import count_bytes, find_boxes, read_amplification
from weathermixer.archive.loader import Batches, read_frames
from weathermixer.archive.reader import Reader
from weathermixer.fields.variables import ChannelSet
from weathermixer.parallel.mesh import make_mesh

NAMES = tuple(f"temperature_{level}" for level in (50, 100, 200, 300, 500, 700, 850, 1000))
# TensorStore reads gaps of up to 4095 bytes along with what is on both sides; a chunk of the finest cut is longer here
SHAPE = (16, 1200)
FRAME_BYTES = 8 * 16 * 1200 * 2
MESHES_OF_8 = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) == 8]


def uncompressed(make_archive, *, domain, tensor):
    return make_archive(names=NAMES, static=(), times=8, shape=SHAPE, domain=domain, tensor=tensor, compressor="none")


def read_by(archive, channels, mesh, devices, times):
    """Bytes read and needed, but for shards' indices and checksums, by a process that has these devices."""
    one = Reader(archive, channels, mesh, len(times), devices=devices)
    before = storage.bytes_read()
    pending = one.start([np.asarray(times)])
    for frame in pending.frames.values():
        for read in frame.reads:
            read.result()
    counted = storage.bytes_read() - before
    shards = {time // 4 for (time, _, _), frame in pending.frames.items() if frame.reads}
    chunk = archive.store.chunk_layout.read_chunk.shape
    index = len(shards) * (16 * 4 * (len(archive.channels) // chunk[1]) * (16 // chunk[2]) + 4)
    chunk_bytes = 2 * np.prod(chunk)
    chunks, rest = divmod(counted - index, chunk_bytes + 4)
    assert rest == 0
    return chunks * chunk_bytes, pending.bytes_needed


def test_a_process_reads_just_its_bytes(make_archive):
    archive = uncompressed(make_archive, domain=8, tensor=8)
    channels = ChannelSet(archive.channels)
    for mesh_shape in MESHES_OF_8:
        mesh = make_mesh(*mesh_shape)
        for device in (mesh.devices[0, 0, 0], mesh.devices[-1, -1, -1]):
            read, needed = read_by(archive, channels, mesh, [device], list(range(mesh_shape[0])))
            assert read == needed == FRAME_BYTES // (mesh_shape[1] * mesh_shape[2])
        assert read_amplification(archive, channels, mesh) == 1.0


@pytest.mark.parametrize("made_for", [(1, 1), (2, 1), (2, 4)])
def test_the_figure_is_honest_on_other_meshes(make_archive, made_for):
    archive = uncompressed(make_archive, domain=made_for[0], tensor=made_for[1])
    channels = ChannelSet(archive.channels)
    for mesh_shape in MESHES_OF_8:
        mesh = make_mesh(*mesh_shape)
        device = mesh.devices[-1, -1, -1]
        boxes = find_boxes(mesh, (mesh_shape[0], 8, *SHAPE), [device])
        read, needed = read_by(archive, channels, mesh, [device], list(range(mesh_shape[0])))
        assert (needed, read) == count_bytes(archive, channels, boxes)
        # the archive's chunks are its own parts, so a box that is smaller pays for a whole one
        cuts = zip(mesh_shape[1:], made_for, strict=True)
        assert (
            read / needed == read_amplification(archive, channels, mesh) == np.prod([max(1, a // b) for a, b in cuts])
        )


@pytest.mark.parametrize(
    ("multiple", "tensor", "amplification"),
    [(1, 2, 1.0), (8, 2, 1.0), (6, 2, 1.0), (4, 4, 1.0), (5, 2, 2.0), (6, 4, 4 / 3), (10, 5, 1.0)],
)
def test_a_padding_that_the_archive_does_not_know(make_archive, multiple, tensor, amplification):
    """Made for two parts of 6 + 2 channels, in chunks of two: other padding moves the parts' ends into chunks."""
    archive = make_archive(
        names=NAMES[:6], static=("land_sea_mask", "soil_type"), times=8, shape=SHAPE, domain=2, tensor=2
    )
    assert archive.store.chunk_layout.read_chunk.shape[1] == 2
    channels, mesh = ChannelSet(archive.channels, tuple(archive.static), multiple), make_mesh(1, 1, tensor)
    ratios = []
    for device in mesh.devices.ravel():
        boxes = find_boxes(mesh, (2, channels.size, *SHAPE), [device])
        read, needed = read_by(archive, channels, mesh, [device], [6, 1])
        assert (needed / 2, read / 2) == count_bytes(archive, channels, boxes)
        ratios += [read / needed] if needed else []
    assert max(ratios) == pytest.approx(read_amplification(archive, channels, mesh)) == pytest.approx(amplification)
    frames = np.asarray(read_frames(archive, channels, mesh, np.array([6, 1])))
    np.testing.assert_array_equal(frames[:, :6], archive.store.read().result()[[6, 1]])
    np.testing.assert_array_equal(frames[:, 6:], 0)


def test_devices_of_one_process_share_what_they_touch(make_archive):
    archive = uncompressed(make_archive, domain=1, tensor=1)
    channels, mesh = ChannelSet(archive.channels), make_mesh(1, 8, 1)
    for _ in range(20):  # without a TensorStore batch one in ten is read twice
        read, needed = read_by(archive, channels, mesh, mesh.devices.ravel().tolist(), [3])
        assert read == needed == FRAME_BYTES
    assert read_amplification(archive, channels, mesh, processes=[mesh.devices.ravel().tolist()]) == 1.0


@pytest.mark.parametrize("size", [1, 4 * 4800, 4 * 9600, 10**9])
def test_large_reads_go_in_pieces_that_cut_no_chunk(make_archive, monkeypatch, size):
    monkeypatch.setattr("weathermixer.archive.reader.PIECE_BYTES", size)
    archive = uncompressed(make_archive, domain=8, tensor=4)  # chunks of two channels, 9600 bytes
    # parts of four of the eight channels and of the padding, and channels in an order that visits chunks twice; other
    # times, as TensorStore may still hold a chunk of the ones before, and finds it unchanged without reading it
    for channels, tensor, times in (
        (ChannelSet(archive.channels, multiple=12), 3, [5, 2]),
        (ChannelSet(archive.channels[::-1]), 2, [6, 1]),
    ):
        mesh = make_mesh(1, 2, tensor)
        reader = Reader(archive, channels, mesh, 2)
        before = storage.bytes_read()
        (frames,) = reader.finish(reader.start([np.array(times)]), threading.Event())
        counted = storage.bytes_read() - before
        stored = archive.store.read().result()[times][:, archive.channel_indices(channels.names)]
        np.testing.assert_array_equal(np.asarray(frames)[:, :8], stored)
        # every chunk once; the index of each of two shards at most once for each of four pieces
        indices, rest = divmod(counted - 2 * 4 * 8 * (9600 + 4), 16 * 4 * 4 * 8 + 4)
        assert rest == 0 and 2 <= indices <= 2 * 4


def test_static_and_padding_channels_are_not_read(make_archive):
    archive = uncompressed(make_archive, domain=1, tensor=8)
    channels, mesh = ChannelSet(archive.channels[:4], (), multiple=8), make_mesh(1, 1, 8)
    assert read_by(archive, channels, mesh, [mesh.devices[0, 0, 3]], [0]) == (
        FRAME_BYTES // 8,
        FRAME_BYTES // 8,
    )
    pending = Reader(archive, channels, mesh, 1, devices=[mesh.devices[0, 0, 3]]).start([np.array([0])])
    assert pending.bytes_needed == FRAME_BYTES // 8
    pending = Reader(archive, channels, mesh, 1, devices=[mesh.devices[0, 0, 4]]).start([np.array([0])])
    assert pending.bytes_needed == 0 and not any(frame.reads for frame in pending.frames.values())


@pytest.mark.parametrize("data", [1, 4])
def test_blocks_share_frames(make_archive, data):
    archive = make_archive(times=65, dtype="float32", domain=2, tensor=2, static=())
    channels, mesh = ChannelSet(archive.channels), make_mesh(data, 2, 1)
    whole = archive.store.read().result()
    options = dict(starts=np.arange(64), seed=2, lead_hours=6, first_step=0, last_step=16)
    accounts = {}
    for block in (1, 4):
        seen = []
        with Batches(archive, channels, mesh, batch_size=data, block=block, **options) as batches:
            for batch in batches:
                inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
                for one, next_one in zip(inputs, targets, strict=True):
                    (start,) = np.flatnonzero((whole == one).all(axis=(1, 2, 3)))
                    np.testing.assert_array_equal(whole[start + 1], next_one)
                    seen.append(start)
            accounts[block] = batches.account()
        if data == 4:
            assert sorted(seen) == list(range(64))
    frame = 4 * 8 * 16 * 4
    # inputs and targets, hardly any of which is shared
    assert 0.9 * 2 * 16 * data * frame < accounts[1].bytes_needed <= 2 * 16 * data * frame
    # a block of 4 pairs is 5 frames instead of 8; the starts that fill no row of blocks are drawn singly
    assert accounts[4].bytes_needed < 0.8 * accounts[1].bytes_needed
    assert accounts[4].bytes_read < 0.8 * accounts[1].bytes_read


def test_memory_has_a_stated_bound(make_archive):
    archive = make_archive()
    channels = ChannelSet(archive.channels)
    options = dict(starts=np.arange(8), seed=0, batch_size=2, lead_hours=12, first_step=0, last_step=1)
    for prefetch, block, held in ((1, 1, 4), (3, 1, 8), (2, 5, 8)):
        with Batches(archive, channels, make_mesh(2, 2, 2), prefetch=prefetch, block=block, **options) as batches:
            assert batches.host_bytes == held * 2 * 2 * archive.store[0].size * 2


def test_requests_that_make_no_sense_are_named(make_archive):
    archive = make_archive()
    good = dict(starts=np.arange(8), seed=0, batch_size=1, lead_hours=6, first_step=0, last_step=1)
    for changes, message in (
        (dict(prefetch=0), "prefetch=0 must be at least 1"),
        (dict(on_error="ignore"), "on_error='ignore' must be 'stop' or 'skip'"),
        (dict(lead_hours=9), "lead_hours=9 is not a positive multiple of step_hours=6"),
        (dict(starts=np.arange(0)), "starts is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            next(Batches(archive, ChannelSet(archive.channels), make_mesh(1, 1, 1), **(good | changes)))
