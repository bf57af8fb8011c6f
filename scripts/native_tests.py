"""Builds and runs the core's native tests: ``native_tests.py [plain] [asan] [tsan]``.

Needs GoogleTest (Debian: libgtest-dev). Each variant keeps its objects in build/native/<variant>,
so that a second run compiles only what has changed. Arguments after ``--`` go to the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vramkit._build import BuildError, _objects, _recipes, _sources, _toolchain  # noqa: E402

# Line numbers for stacks, without what a debugger needs besides, which takes a quarter of the time.
_SANITIZED = ("-g1", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
_VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "asan": (*_SANITIZED, "-fsanitize=address,undefined"),
    "tsan": (*_SANITIZED, "-fsanitize=thread"),
}
_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1",
    "TSAN_OPTIONS": "halt_on_error=1 second_deadlock_stack=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build_tests(variant: str) -> Path:
    """Return the test program, freshly built where that was needed."""
    core = _recipes.core(ROOT / "csrc")
    flags = _VARIANTS[variant]
    tests = tuple(sorted((ROOT / "tests" / "cpp").rglob("*_test.cpp")))
    recipe = replace(
        core,
        name="native_tests",
        sources=(*core.sources, *_sources.table_sources(core.root), *tests),
        # Sanitizers want each function as it was written; the plain variant shares core's objects.
        compile=(*_recipes.core_flags(core.root), *flags) if flags else core.compile,
        link=(_toolchain.find_cxx(), "-pthread", *(flags or _recipes.whole_program_flags())),
        link_tail=("-lgtest", "-lgtest_main", "-ldl"),
        exports=None,
    )
    objects = ROOT / "build" / "native" / variant
    return _objects.build(recipe, objects, objects, verbose=True)


def main(arguments: list[str]) -> int:
    """Build and run the named variants (all of them by default)."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    wanted, test_arguments = arguments[:split] or list(_VARIANTS), arguments[split + 1 :]
    unknown = set(wanted) - set(_VARIANTS)
    if unknown:
        print(f"error: unknown variant {sorted(unknown)}; there are {list(_VARIANTS)}")
        return 2
    for variant in wanted:
        try:
            program = build_tests(variant)
        except BuildError as err:
            print(f"error: {err}", file=sys.stderr)
            return 1
        print(f"native tests, {variant}:", flush=True)
        command = [str(program), "--gtest_brief=1", *test_arguments]
        done = subprocess.run(command, env=_ENVIRONMENT | dict(os.environ), check=False)
        if done.returncode != 0:
            print(f"error: native tests, {variant}: status {done.returncode}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
