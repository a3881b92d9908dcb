from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from stiefel_jobs.ids import new_id


def test_an_id_names_its_kind_and_is_safe_in_a_path() -> None:
    assert re.fullmatch(r"job_[0-9A-HJKMNP-TV-Z]{26}", new_id("job"))


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    ids = [new_id("job") for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2000


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id("job"), range(4000)))
    assert len(set(ids)) == 4000
