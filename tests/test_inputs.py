"""A few hundred damaged files; `python tests/fuzz_inputs.py` reads ten thousand."""

from tests.fuzz_inputs import fuzz, kinds


def test_damaged_files_end_in_a_line_each(tmp_path):
    number = 12 * len(kinds())
    counts, failures = fuzz(number, 1, tmp_path)
    assert not failures, failures[0]
    assert sum(counts.values()) == number
    assert sum(n for (_, what), n in counts.items() if what == "refused") > number / 3
