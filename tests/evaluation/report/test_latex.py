import re

from tests.evaluation.report.whole import whole

from manytune.evaluation.report.latex import escape, render_latex


def test_a_latex_table_has_a_row_a_system_and_marks_what_the_test_found():
    lines = render_latex(whole()).splitlines()
    (base,) = [line for line in lines if line.startswith("base &")]
    (lora,) = [line for line in lines if line.startswith("lora &")]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", "\n".join(lines))[1]
    assert base.count("&") == lora.count("&") == len(columns) - 1
    assert r"\uparrow" in lora and r"\uparrow" not in base
    assert lora.endswith(r"\\")


def test_latex_is_escaped():
    assert escape("a_b 50% {x} \\ ~^") == (
        r"a\_b 50\% \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}"
    )
