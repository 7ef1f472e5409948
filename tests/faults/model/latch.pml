/*
 * The latch, django_dblock.coordination.latch, for Spin: parts in transactions of their own, which
 * roll back, are run again, also twice at one time; and one who waits for all of them.
 *
 *     spin -a latch.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   OPEN   who waits goes on only after the transaction of every part has committed;
 *   GOES   when every part has committed, it does go on;
 *   APART  two parts never wait for each other;
 *   and no run gets stuck.
 *
 * The steps, by the names in django_dblock/sql/coordination.py: COUNT_DOWN, in the transaction of the
 * part; its COMMIT or ROLLBACK; COUNT_PARTS, each time with a snapshot of its own.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   BESIDE         a part is counted in a transaction beside its own
 *   COUNTER        a number is counted down at each COMMIT, also when a part is run again
 *   READ_AND_WRITE the number is read, and written back later
 *   ONE_ROW        all parts write one row, and each keeps it until its COMMIT
 *   LAST_ACTS      nobody waits: who sees all parts in its own transaction goes on
 *
 * SEE_OPEN, SEE_ROLLBACK, SEE_TWICE say that something can't happen, which can.
 *
 * What is left out: the purge, which closes a latch that was idle for a month, as its docs say; the
 * waiter's wake-up, because it may look at any moment here; and what a part does besides, which
 * commits or rolls back with its row.
 */

#define PARTS 3
#ifndef FAILURES
#define FAILURES 2
#endif
#define NOBODY 9

bool effect[PARTS];               /* the part's work has committed */
bool counted[PARTS];              /* its row has */
byte writer[PARTS] = NOBODY;      /* who has inserted the row, and not committed */
byte missing = PARTS;             /* the number of the broken variants */
byte row_lock = NOBODY;

byte failures = 0;
bool open = false;

#define ALL_COUNTED (counted[0] && counted[1] && counted[2])
#define ALL_DONE (effect[0] && effect[1] && effect[2])

inline go_on() {
    assert(ALL_DONE);                                                         /* OPEN */
    open = true;
#ifdef SEE_OPEN
    assert(false)
#endif
}

proctype Part(byte me; byte part) {
    byte number;
    bool new;
    bool waited;
again:
    /* COUNT_DOWN: a row of its own. The same part in another transaction is waited for. */
#ifdef ONE_ROW
    if
    :: d_step { row_lock == NOBODY -> row_lock = me; new = !counted[part] }
    :: d_step { row_lock != NOBODY && row_lock / 2 != part -> assert(false) } /* APART */
    fi;
#else
    if
    :: d_step { counted[part] -> new = false;                                 /* DO NOTHING */
#ifdef SEE_TWICE
        assert(false)
#endif
        }
    :: d_step { !counted[part] && writer[part] == NOBODY -> writer[part] = me; new = true }
    fi;
#endif
#ifdef BESIDE
    counted[part] = true;
#endif
#ifdef READ_AND_WRITE
    number = missing;
#endif
#ifdef LAST_ACTS
    if
    :: d_step { (counted[0] || part == 0) && (counted[1] || part == 1) && (counted[2] || part == 2)
        -> waited = true }
    :: else
    fi;
#endif
    if
    :: d_step {                                                               /* COMMIT */
        effect[part] = true; counted[part] = true;
#if defined(COUNTER)
        if
        :: missing > 0 -> missing--
        :: else
        fi;
#elif defined(READ_AND_WRITE)
        if
        :: new -> missing = number - 1
        :: else
        fi;
#endif
        if
        :: writer[part] == me -> writer[part] = NOBODY
        :: else
        fi;
        if
        :: row_lock == me -> row_lock = NOBODY
        :: else
        fi;
#ifdef LAST_ACTS
        if
        :: waited -> go_on()
        :: else
        fi;
#endif
        number = 0; new = false; waited = false }
    :: d_step {                                                               /* ROLLBACK */
        failures < FAILURES -> failures++;
#ifdef SEE_ROLLBACK
        assert(!(counted[0] || counted[1]));
#endif
        if
        :: writer[part] == me -> writer[part] = NOBODY
        :: else
        fi;
        if
        :: row_lock == me -> row_lock = NOBODY
        :: else
        fi;
        number = 0; new = false; waited = false }
        goto again
    fi
}

#if defined(COUNTER) || defined(READ_AND_WRITE)
#define IS_OPEN (missing == 0)
#else
#define IS_OPEN ALL_COUNTED
#endif

proctype Waiter() {
#ifndef LAST_ACTS
    d_step { IS_OPEN -> go_on() }                                             /* COUNT_PARTS */
#endif
end:
    skip
}

init {
    atomic {
        run Part(0, 0);
        run Part(1, 0);           /* a worker that was believed dead: the same part, twice */
        run Part(2, 1);
        run Part(4, 2);
        run Waiter()
    }
    timeout;
    assert(ALL_DONE && open)                                                  /* GOES */
}
