"""Bundles as libtpu writes them, read back. No compiler is needed."""

import pytest

from embsim_tpu.aot import TARGETS
from embsim_tpu.aot.bundles import DELAY_SLOTS, flags, parse, program

# 14 chunks of 4 turns, and a loop that a number from memory ends.
KERNEL = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1_s0 = inlined_call_operand.hbm [shape: f32[9,128], index: 0] }
   0x1   :  { %s2_s9 = smov 0 /* copy for cssa */ } /* Start region 31 :: End region 31 */
   0x2 LB: > { %s4_s9 = sadd.s32 1, %s3_s9  ;;  %s3_s9 = sphi %s2_s9, %s4_s9 } /* Start region 7 */
   0x3   : > { %p5_p0 = scmp.lt.s32.totalorder %s3_s9, 1  ;;  %s6_s8 = smov (!%p5_p0), 0 }
   0x4   : > { %7 = sbr.rel (%p5_p0) target = $region9 }
   0x5   :  {}
   0x6   : > { %s8_s8 = smov %s6_s8 /* copy for cssa */ }
   0x7 LB: >> { %v10_v0 = vld [%s9_s1]  ;;  %s9_s8 = sphi %s8_s8, %s12_s8 } /* Start region 8 */
   0x8   : >> { %11 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s5, /*size_in_granules=*/16 /*
base_bounds: (125000, 1, 8)
element_size_in_bytes: 512 */ }
   0x9   : >> { %s12_s8 = sadd.s32 2, %s9_s8  ;;  %v13_v1 = vrsqrt.f32 %v10_v0 }
   0xa   : >> { %p14_p1 = scmp.ge.s32.totalorder %s12_s8, 8 }
   0xb   : > { %15 = sbr.rel (!%p14_p1) target = $region8 }
   0xc   : >> { %16 = vst [vmem:[%s9_s1] sm:$0x1] /*vst_source=*/%v13_v1 } /* End region 8 */
   0xd PF: > { %17 = dma.done.wait [#allocation1], 16 } /* Start/End empty region 9 */
   0xe   : > { %18 = sst [smem:[#allocation3_spill]] %s4_s9 }
   0xf   : > { %s19_s9 = sld [smem:[#allocation3_spill]] }
  0x10   : > { %p20_p2 = scmp.ge.s32.totalorder %s19_s9, 14 /* loop exit test */ }
  0x11   :  { %21 = sbr.rel (!%p20_p2) target = $region7 }
  0x12   :  {} /* End region 7 */
  0x13   :  { %22 = sbr.rel (%p20_p2) target = $region40 }
  0x14   :  {}
  0x15 LB: > { %s3_s3 = sadd.s32 1, %s2_s3  ;;  %s2_s3 = sphi %s1_s3, %s3_s3 } /* Start region 12 */
  0x16   : > { %p26_p3 = scmp.ge.s32.totalorder %s3_s3, %s27_s4 }
  0x17   :  { %28 = sbr.rel (!%p26_p3) target = $region12 }
  0x18   :  {}
  0x19   :  { %29 = vsyncpa [#allocation1], 1 } /* exit bundle: %kernel.1 = custom-call(%t.1) */
"""

TOP = """\
     0   :  { %1 = inlined_call /* <late-initialization> */ }
   0x1   :  { %2 = inlined_call %s1, %s2 /* %kernel.1 = custom-call(%t.1) */ }
   0x2   :  { %s3_s1 = smov 0 }
   0x3 LB: > { %s4_s1 = sadd.s32 1, %s5_s1  ;;  %s5_s1 = sphi %s3_s1, %s4_s1 } /* Start region 5 */
   0x4   : > { %6 = inlined_call %s1, %s2 /* %fusion.2 = fusion(%t.1) */ }
   0x5   : > { %p7_p0 = scmp.ge.s32.totalorder %s4_s1, 3 }
   0x6   :  { %8 = sbr.rel (!%p7_p0) target = $region5 }
   0x7   :  {}
"""

SHARED = """\
key:fusion
ordinal:1
equivalent_hlos[size=2]:
  fusion
  fusion.2
key:kernel.1
ordinal:2
equivalent_hlos[size=1]:
  kernel.1
"""


def test_loops_are_found_with_what_is_inside_them():
    chunks, rows, other = parse(KERNEL, "v4").loops
    assert (chunks.start, chunks.end, chunks.depth, chunks.inner) == (0x2, 0x12, 1, 1)
    assert (rows.start, rows.end, rows.depth, rows.inner) == (0x7, 0xC, 2, 0)
    assert (chunks.bundles, chunks.own, rows.own, other.own) == (17, 11, 6, 4)


def test_bundles_outside_loops_are_told_apart():
    found = parse(KERNEL, "v4")
    assert (found.bundles, found.own) == (26, 26 - 17 - 4)


def test_turns_come_from_constants_behind_copies_and_memory():
    assert [loop.turns for loop in parse(KERNEL, "v4").loops] == [14, 4, None]


@pytest.mark.parametrize("test", ["scmp.ge.s32.totalorder %s12_s8, %s99", "por %p1_p1, %p2_p2"])
def test_a_test_against_no_constant_leaves_turns_unknown(test):
    text = KERNEL.replace("scmp.ge.s32.totalorder %s12_s8, 8", test)
    assert [loop.turns for loop in parse(text, "v4").loops] == [14, None, None]


def test_a_loop_that_a_branch_may_pass_by_is_optional():
    assert [loop.optional for loop in parse(KERNEL, "v4").loops] == [False, True, True]


def test_instructions_are_counted_where_they_stand():
    chunks, rows, _ = parse(KERNEL, "v4").loops
    kinds = {"reads": 1, "dmas": 1, "waits": 0, "vld": 1, "vst": 1, "sqrt": 1, "rcp": 0}
    assert dict(rows.counts) == kinds
    assert dict(chunks.counts) == dict.fromkeys(kinds, 0) | {"waits": 1}


def test_a_loop_ends_with_the_delay_slots_of_its_branch():
    for name in TARGETS:
        assert parse(KERNEL, name).loops[1].end == 0xB + DELAY_SLOTS[name]


def test_a_body_is_executed_for_each_turn_of_all_loops_around_it():
    found = parse(KERNEL, "v4")
    assert [found.times(loop) for loop in found.loops] == [(14, True), (56, True), (1, False)]


@pytest.fixture
def dump(tmp_path):
    for name, text in (("TLP", TOP), ("kernel.1", KERNEL), ("fusion", KERNEL)):
        (tmp_path / f"1795-{name}-01-final_bundles.txt").write_text(text)
    (tmp_path / "1795-TLP-00-deduplication-map.txt").write_text(SHARED)
    (tmp_path / "1795-TLP-00-schedule-analysis_final_bundles.txt").write_text("total: 680")
    return tmp_path


def test_a_program_is_its_calls_each_as_often_as_its_loops_turn(dump):
    found = [(name, function.bundles, times) for name, function, times in program(dump, "v4")]
    assert found == [("kernel.1", 26, 1), ("fusion.2", 26, 3)]


def test_a_call_in_a_loop_of_unknown_length_is_executed_an_unknown_number_of_times(dump):
    top = next(dump.glob("*-TLP-*-final_bundles.txt"))
    top.write_text(TOP.replace("%s4_s1, 3 }", "%s4_s1, %s9_s9 }"))
    assert [times for _, _, times in program(dump, "v4")] == [1, None]


def test_a_function_that_was_not_written_is_an_error(dump):
    next(dump.glob("*-fusion-*")).unlink()
    with pytest.raises(KeyError, match="fusion"):
        program(dump, "v4")


def test_the_flags_name_the_directory(tmp_path):
    assert f"--xla_jf_dump_to={tmp_path} " in flags(tmp_path)
