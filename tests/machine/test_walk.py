from helpers.machine.walk import files_below


def test_only_what_the_owner_put_there_is_read(tmp_path):
    meant = ["a.md", "deep/er/B.MD", "environment/c.md"]
    kept_by_programs = [".git/x.md", ".x.md", "node_modules/p/x.md", "mine/lib/x.md", "checkpoint-10/README.md", "~$x.md"]
    for name in [*meant, *kept_by_programs, "a.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "mine" / "pyvenv.cfg").write_text("")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, [".md"])]
    assert found == meant
