"""What happened to jobs, as triggers in the database saw it: claims, and those that came too early. No daemon
is asked, and no file of the product knows of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

IN_SQLITE = """
create table witness_claims (job_id text, epoch int, at text);
create table witness_early (job_id text, epoch int);
create trigger witness_claim after update on jobs when new.epoch > old.epoch begin
  insert into witness_claims values (new.id, new.epoch, strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'));
  insert into witness_early
    select new.id, new.epoch from jobs p
    where p.batch_id = new.batch_id and p.state not in ('succeeded', 'ignored')
      and p.batch_name in (select value from json_each(new.batch_after));
end;
"""
IN_POSTGRES = """
create table witness_claims (job_id text, epoch int, at timestamptz default clock_timestamp());
create table witness_early (job_id text, epoch int);
create table witness_full (job_id text, epoch int, store text, running int);
create table witness_published (job_id text, epoch int, at timestamptz default clock_timestamp());
create function witness_job() returns trigger language plpgsql as $$
begin
  if new.epoch > old.epoch then
    insert into witness_claims (job_id, epoch) values (new.id, new.epoch);
    if new.batch_after is not null then
      insert into witness_early
        select new.id, new.epoch from jobs p
        where p.batch_id = new.batch_id and p.state not in ('succeeded', 'ignored')
          and p.batch_name in (select jsonb_array_elements_text(new.batch_after::jsonb));
    end if;
    insert into witness_full
      select new.id, new.epoch, other.store, count(*) from job_stores mine
      join job_stores other on other.store = mine.store
      join jobs r on r.id = other.job_id
      where mine.job_id = new.id and r.owner = new.owner and r.state = 'running'
        and r.lease_until > timezone('utc', clock_timestamp())
      group by other.store;
  end if;
  if new.published and not old.published then
    insert into witness_published (job_id, epoch) values (new.id, new.epoch);
  end if;
  return new;
end $$;
create trigger witness_job after update on jobs for each row execute function witness_job();
grant all on witness_claims, witness_early, witness_full, witness_published to glissade;
"""
"""`witness_full`: how many jobs of the node used each store of the one that it has just claimed, this one
included.
"""
CLAIMS = "select job_id, {at} from witness_claims"
EARLY = "select job_id from witness_early"


def too_early(
    claims: Iterable[tuple[str, str]], early: Iterable[str], jobs: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What is wrong with these claims (a job's id, and an ISO time) of these jobs; `early` are those that
    were claimed before what they come after was done.
    """
    found = [f"the job {job_id} was claimed before what it comes after was done" for job_id in early]
    for job_id, at in claims:
        not_before = jobs.get(job_id, {}).get("not_before")
        if not_before is not None and datetime.fromisoformat(at) < datetime.fromisoformat(not_before):
            found.append(f"the job {job_id} was claimed at {at}, and not to begin before {not_before}")
    return found
