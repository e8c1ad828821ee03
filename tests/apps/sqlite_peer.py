"""sqlite_peer.py DIR HOST PORT CONNECTIONS: each writes rows, all into one file, and reads what it has written; in the
end the file is sound and holds every row that was acknowledged, once."""
import os
import sys
import time
import peer


class Sqlite:
    def __init__(self, host, port):
        self.s = peer.connect(host, port, timeout=60)
        self.answers = self.s.makefile("rb")
        self.run(".timeout 30000\nPRAGMA synchronous=OFF;\nPRAGMA wal_autocheckpoint=100;")

    def run(self, sql):
        """What it prints. The last line is ours: errors go elsewhere, and show by what is missing."""
        self.s.sendall(sql.encode() + b"\nSELECT 'done';\n")
        lines = []
        while (line := self.answers.readline()) not in (b"done\n", b""):
            lines.append(line.decode().rstrip("\n"))
        if not line:
            raise ValueError("the connection ended")
        return lines


def expect(got, want):
    if got != want:
        raise ValueError("%r instead of %r" % (got, want))


def writer(run, db, who):
    n = total = 0

    def ask():
        nonlocal n, total
        n += 1
        text = os.urandom(200).hex()
        lines = db.run("BEGIN IMMEDIATE;\nINSERT INTO t VALUES(%d, %d, '%s');\nUPDATE sums SET n = n + 1, s = s + %d WHERE who = %d;\nCOMMIT;\n"
                       "SELECT text FROM t WHERE who = %d AND n = %d;\nSELECT n, s FROM sums WHERE who = %d;"
                       % (who, n, text, n * n, who, who, n, who))
        total += n * n
        expect(lines, [text, "%d|%d" % (n, total)])
        run.right(who)
        time.sleep(0.01)

    return ask


def main(directory, host, port, connections):
    run = peer.Run(directory)
    first = Sqlite(host, port)
    expect(first.run("PRAGMA journal_mode=WAL;"), ["wal"])
    first.run("CREATE TABLE t(who, n, text);\nCREATE INDEX i ON t(who, n);\nCREATE TABLE sums(who, n, s);")
    for i in range(int(connections)):
        first.run("INSERT INTO sums VALUES(%d, 0, 0);" % i)
    dbs = [first] + [Sqlite(host, port) for _ in range(int(connections) - 1)]
    peer.side_by_side(run, [lambda db=db, i=i: writer(run, db, i) for i, db in enumerate(dbs)])
    try:
        expect(first.run("PRAGMA journal_mode;\nPRAGMA integrity_check;\nSELECT count(*) FROM t;\nSELECT count(*) FROM (SELECT DISTINCT who, n FROM t);"),
               ["wal", "ok", str(run.count), str(run.count)])
        expect(first.run("SELECT count(*) FROM sums WHERE s != (SELECT sum(n * n) FROM t WHERE t.who = sums.who);"), ["0"])
    except Exception as e:
        run.wrong("%s: %s" % (type(e).__name__, e))
    run.end()


main(*sys.argv[1:])
