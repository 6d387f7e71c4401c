"""The commands and programs that README and docs show, and what it takes to read a command without running it."""

import dataclasses
import re
import shlex
import typing as tp
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))]
PROGRAMS = ('lumina', 'dora', 'make', 'python', 'pip', 'git', 'torchrun', 'uvicorn', '.')
MARK = re.compile(r'<!-- not run: (.+) -->')


@dataclasses.dataclass(frozen=True)
class Shown:
    """A command or a program of a page.

    Args:
        page (str), line (int): Where it stands.
        kind (str): The fence's first word, e.g. 'python'; 'shell' for a command.
        text (str): The command on one line and without its comment; the program.
        unrun (str, optional): Why the page says that it is not run by any test.
    """
    page: str
    line: int
    kind: str
    text: str
    unrun: tp.Optional[str] = None

    def __str__(self) -> str:
        return f'{self.page}:{self.line}: {self.text.splitlines()[0]}'


def shown(page: str) -> tp.List[Shown]:
    """All of a page, in its order. An indented block holds commands alone or none; a fence says what it holds."""
    found: tp.List[Shown] = []
    for line, kind, text, mark in _blocks((ROOT / page).read_text(encoding='utf-8')):
        if kind not in ('', 'shell', 'sh', 'bash'):
            found.append(Shown(page, line, kind, text, mark))
            continue
        for offset, command in _commands(text):
            found.append(Shown(page, line + offset, 'shell', command, mark))
    return found


def inline(page: str) -> tp.List[str]:
    """Commands of ours within sentences, as far as they have options."""
    prose = re.sub(r'^```.*?^```$', '', (ROOT / page).read_text(encoding='utf-8'), flags=re.M | re.S)
    return [' '.join(code.split()) for code in re.findall(r'`(lumina [^`]*--[^`]*)`', prose) if '<' not in code]


def _blocks(text: str) -> tp.Iterator[tp.Tuple[int, str, str, tp.Optional[str]]]:
    """(first line, kind, text, mark) of fences and of blocks indented by four after an empty line."""
    lines, mark, index = text.splitlines(), None, 0
    while index < len(lines):
        line = lines[index]
        fence = re.match(r'```(.*)$', line)
        if fence:
            end = next(i for i in range(index + 1, len(lines)) if lines[i].startswith('```'))
            yield index + 2, fence[1].strip(), '\n'.join(lines[index + 1:end]), mark
            mark, index = None, end + 1
        elif line.startswith('    ') and index and not lines[index - 1].strip():
            end = index
            while end < len(lines) and lines[end].startswith('    '):
                end += 1
            yield index + 1, '', '\n'.join(one[4:] for one in lines[index:end]), mark
            mark, index = None, end
        else:
            told = MARK.fullmatch(line)
            mark, index = (told[1] if told else mark if not line.strip() else None), index + 1


def _commands(text: str) -> tp.List[tp.Tuple[int, str]]:
    """(line, command) of a block of commands; none of a block that begins with something else, e.g. an output."""
    found: tp.List[tp.Tuple[int, str]] = []
    begun: tp.Optional[tp.Tuple[int, str]] = None
    for number, line in enumerate(text.splitlines()):
        line = re.sub(r'(^|\s\s)#.*$', '', line).strip()
        if not line:
            continue
        start, before = begun or (number, '')
        begun = None
        if line.endswith('\\'):
            begun = (start, f'{before} {line[:-1]}')
            continue
        command = ' '.join(f'{before} {line}'.split())
        for part in command.split(' && '):
            if words(part)[0] not in PROGRAMS and not part.startswith('cd '):
                assert not found, f"a block of commands ends in something else: {part}"
                return []
            found.append((start, part))
    return found


def words(command: str) -> tp.List[str]:
    """A command's words, without the variables that are set for it and without what stands for more of its kind."""
    try:
        given = shlex.split(command)
    except ValueError:
        return ['']
    given = [word.rstrip('…') if word != '.' else word for word in given]
    given = [word for word in given if word not in ('', '...')]
    while given and re.match(r'[A-Z_]+=', given[0]):
        given = given[1:]
    return given or ['']


def parse(command: str) -> None:
    """Raise where a command of ours has an option, a key, a target or a file that there is not."""
    first, *rest = words(command)
    if first == 'lumina':
        _parse_lumina(rest)
    elif first == 'torchrun':
        _parse_lumina(rest[rest.index('lumina_plugin') + 1:])
    elif first == 'dora':
        _parse_dora(rest)
    elif first == 'make':
        targets = [word for word in rest if '=' not in word]
        makefile = (ROOT / 'Makefile').read_text()
        assert all(re.search(rf'^{target}:', makefile, re.M) for target in targets), command
    elif first == 'python' and rest[0] != '-c':
        source = (ROOT / rest[0]).read_text()
        if 'lumina_plugin.cli' not in source:
            options = {word: word[2:].replace('-', '_') for word in rest[1:] if word.startswith('--')}
            missing = [word for word, name in options.items()
                       if not re.search(rf"'{word}'|\b{name}: ", source)]  # argparse's, or a parameter of typer's
            assert not missing, f'{command}: {missing} are no options of {rest[0]}'
    elif first == 'pip':
        extra = re.search(r'\[(\w+)\]', command)
        assert extra is None or re.search(rf"['\"]{extra[1]}['\"]:", (ROOT / 'setup.py').read_text()), command


def _parse_lumina(argv: tp.Sequence[str]) -> None:
    """Let the command line's own parser read the words; nothing is run. Placeholders are made to fit."""
    import click
    import typer.main

    from lumina_plugin.cli.app import app
    command: tp.Any = typer.main.get_command(app)
    parent, name, rest = None, 'lumina', [re.sub(r'^(SECONDS|OFFSET)$', '1', word).split('|')[0] for word in argv]
    rest = [re.sub(r'\.\.\.$', '', word) for word in rest]
    while True:
        try:
            context = command.make_context(name, list(rest), parent=parent)
        except Exception as error:
            raise AssertionError(f"lumina {' '.join(argv)}: {getattr(error, 'message', error)}") from error
        if not hasattr(command, 'resolve_command'):
            return
        remaining = [*getattr(context, '_protected_args', []), *context.args]
        if not remaining:
            return
        name, command, rest = command.resolve_command(context, remaining)
        assert isinstance(command, click.Command) or command is not None
        parent = context


def _parse_dora(argv: tp.Sequence[str]) -> None:
    """Read dora's own options, and compose the configuration that a run's overrides mean."""
    from dora.__main__ import get_parser

    from lumina_plugin import train
    args, _ = get_parser().parse_known_args(['-P', 'lumina_plugin', *argv]) if hasattr(
        get_parser(), 'parse_known_args') else (None, None)
    if 'run' in argv:
        overrides = [word for word in argv[argv.index('run') + 1:] if '=' in word]
        if overrides and not any(word.endswith(('/', '=')) for word in overrides):
            train.main.get_xp(overrides)
    elif 'grid' in argv:
        name = argv[argv.index('grid') + 1]
        assert (ROOT / 'grids' / f"{name.replace('.', '/')}.py").is_file(), name
