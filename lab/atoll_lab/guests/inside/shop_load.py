"""A constant load on MariaDB: sell an article, write the ledger, commit, and count a second.

Usage: shop_load.py SECONDS RATE; RATE 0 is as fast as it goes. Prints lines as
pgbench does: `progress: 1700000000.000 s, 85.0 tps`.
"""

import random
import subprocess
import sys
import time


def main(seconds: float, rate: float) -> None:
    """Run for `seconds`, at most `rate` transactions a second."""
    client = subprocess.Popen(
        ["mariadb", "--batch", "--skip-column-names", "--unbuffered", "shop"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    start = last = time.time()
    total = counted = 0
    while (now := time.time()) - start < seconds:
        if rate and total > (now - start) * rate:
            time.sleep(total / rate - (now - start))
        article = random.randint(1, 5000)
        client.stdin.write(
            "BEGIN; "
            f"UPDATE stock SET quantity = quantity - 1 WHERE id = {article}; "
            f"INSERT INTO ledger (note) VALUES ('sold {article}'); "
            "COMMIT; SELECT last_insert_id();\n"
        )
        client.stdin.flush()
        if not client.stdout.readline():
            sys.exit("shop_load: the database went away")
        total += 1
        counted += 1
        if (now := time.time()) - last >= 1:
            print(f"progress: {now:.3f} s, {counted / (now - last):.1f} tps", flush=True)
            last, counted = now, 0


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
