#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each error that the sources make says what can be done: `what: why (remedy)`. What only passes a text on is not looked at."""
import re
import subprocess

MAKERS = re.compile(r"\b(kx_err_set|kx_err_exit)\(")


def call(text, at):
    """The arguments of a call, from behind its parenthesis."""
    depth, i, quoted = 1, at, False
    while depth:
        c = text[i]
        if quoted and c == "\\":
            i += 1
        elif c == '"':
            quoted = not quoted
        elif not quoted:
            depth += (c == "(") - (c == ")")
        i += 1
    return text[at:i - 1]


def words(arguments):
    """The literals of a call in one; nothing for what another error, or a macro with a remedy, ends."""
    if re.search(r"\.msg\b|[A-Z]_REMEDY\b", arguments):
        return ""
    literal = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', arguments))
    return literal if re.search(r"[a-z]", re.sub(r"%[-.*0-9]*[a-z]+", "", literal)) else ""


def silent(text):
    """Line and text of each error in this source without a remedy."""
    for m in MAKERS.finditer(text):
        said = words(call(text, m.end()))
        if said and "(" not in said:
            yield text.count("\n", 0, m.start()) + 1, said


assert list(silent('kx_err_set(err, e, "a: %s",\n strerror(e));\n')) == [(1, "a: %s")]
assert not list(silent('kx_err_set(err, e, "a: b (do " "c)");kx_err_set(err, e, "%s:%u: %s", path, line, text); int kx_err_set(x);'))

files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "monitor/*.c", "cli/*.c", "util/*.c", "lib/*.c"],
                       check=True, stdout=subprocess.PIPE, text=True).stdout.split()
assert len(files) > 100, files
found = []
for path in files:
    with open(path) as f:
        found += [f"{path}:{line}: {said!r} has no remedy" for line, said in silent(f.read())]
if found:
    raise SystemExit("\n".join(found))
