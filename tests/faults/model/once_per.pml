/*
 * The periodic job, django_dblock.coordination.once_per in atomic mode, for Spin: runners that call
 * it whenever they like, and may die at any step; the database's clock; one who catches up.
 *
 *     spin -a once_per.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   ONCE    the effect of a period is committed at most once;
 *   RECORD  a period is recorded if, and only if, its effect is committed;
 *   EARLY   no run is for a period that has not begun by the database's clock;
 *   AGAIN   a period whose runs have died or failed is missed, and is run again: in the end each
 *           period that is over has its effect;
 *   and no run gets stuck, or ends with the key locked.
 *
 * The steps, by the names in django_dblock/sql: CLOCK, which gives the period; the advisory lock on
 * the period's key, if it is free, and READ, one message; the function; the record and the COMMIT;
 * FINISHED, by which missed() finds what to catch up with.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   SET_NX        the period is noted before the run, as a cache key with SET NX would
 *   RECORD_AFTER  it is noted in a transaction after that of the effect
 *   NO_LOCK       it is looked up, and noted, without the lock
 *   NX_EXPIRES    the key of SET NX has a time to live, which may end during the run
 *   APP_CLOCK     the period is cut by the runner's clock; one of them is ahead
 *   LATE_PERIOD   the period is cut again when the run is noted
 *
 * SEE_DONE, SEE_RUNNING, SEE_DEAD, SEE_MISSED say that something can't happen, which can.
 *
 * What is left out: lease mode, whose claims and tokens are in idempotency.pml; retention, within
 * which it is; calendars, which tests/coordination/test_once_per.py tests with dates.
 */

#ifndef RUNNERS
#define RUNNERS 2
#endif
#ifndef PERIODS
#define PERIODS 2
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#define NOBODY 9

byte period = 0;                  /* the database's clock */
bool recorded[PERIODS + 2];
byte effect[PERIODS + 2];
byte key_lock[PERIODS + 2] = NOBODY;
byte deaths = 0;

#ifdef APP_CLOCK
#define CLOCK(i) (period + ((i) == 1))
#else
#define CLOCK(i) period
#endif
#ifdef NO_LOCK
#define TAKE(p) skip
#else
#define TAKE(p) key_lock[p] = me
#endif

inline let_go(p) {
    if
    :: key_lock[p] == me -> key_lock[p] = NOBODY
    :: else
    fi
}

inline note(p) {
#ifdef LATE_PERIOD
    recorded[period] = true
#else
    recorded[p] = true
#endif
}

/* run_once() for a period. */
inline call(p) {
    if
    :: d_step { key_lock[p] == NOBODY && recorded[p] -> done = true;          /* the replay */
#ifdef SEE_DONE
        assert(false)
#endif
        }
    :: d_step { key_lock[p] != NOBODY -> done = true;                         /* it is running */
#ifdef SEE_RUNNING
        assert(false)
#endif
        }
    :: d_step { key_lock[p] == NOBODY && !recorded[p] -> TAKE(p);
        assert(p <= period) }                                                 /* EARLY */
    fi;
    if
    :: done -> done = false
    :: else ->
#if defined(SET_NX) || defined(NX_EXPIRES)
        d_step { recorded[p] = true; let_go(p) }
#endif
        if
        :: d_step { deaths < DEATHS -> deaths++; let_go(p);                   /* it dies, or fails */
#ifdef SEE_DEAD
            assert(false)
#endif
            }
        :: d_step { true -> effect[p] = effect[p] + 1;                        /* COMMIT */
            assert(effect[p] <= 1);                                           /* ONCE */
#if !defined(SET_NX) && !defined(NX_EXPIRES) && !defined(RECORD_AFTER)
            note(p);
            assert(recorded[p]);                                              /* RECORD */
#endif
#ifndef RECORD_AFTER
            let_go(p)
#endif
            }
#ifdef RECORD_AFTER
            if
            :: d_step { deaths < DEATHS -> deaths++; let_go(p) }
            :: d_step { true -> note(p); let_go(p) }
            fi
#endif
        fi
    fi
}

proctype Runner(byte me) {
    byte calls, mine;
    bool done;
    do
    :: d_step { calls < CALLS -> calls++; mine = CLOCK(me) }                  /* CLOCK */
        call(mine);
        mine = 0
    :: break
    od
}

/* missed() and run_for(): from time to time, and again after the last period that is looked at. */
proctype Caretaker(byte me) {
    byte mine;
    bool done;
end:
    do
    :: d_step {                                                               /* FINISHED */
        mine < period && !recorded[mine] && key_lock[mine] == NOBODY ->
#ifdef SEE_MISSED
        assert(false);
#endif
        skip }
        call(mine)
    :: d_step { mine < period && recorded[mine] -> mine++ }
    od
}

proctype Time() {
    byte i;
end:
    do
    :: d_step { period < PERIODS -> period++ }
#ifdef NX_EXPIRES
    :: d_step { recorded[0] -> recorded[0] = false }
#endif
    od
}

init {
    byte i;
    atomic {
        for (i : 0 .. RUNNERS - 1) { run Runner(i) }
        run Caretaker(RUNNERS);
        run Time()
    }
    timeout;
    for (i : 0 .. PERIODS - 1) {
        assert(effect[i] == 1 && recorded[i] && key_lock[i] == NOBODY)        /* AGAIN, AT REST */
    }
    assert(effect[PERIODS] == recorded[PERIODS])                              /* RECORD */
}
