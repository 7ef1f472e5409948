/*
 * An election, django_dblock.coordination.leadership, for Spin: candidates that campaign again after
 * each term, that may stop anywhere for any time; terms that end at any time; late renewals.
 *
 *     spin -a leadership.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   TERMS     each term's token is greater than those of all terms before it;
 *   COMMIT    a guarded transaction commits only in the latest term, under its token, also that of a
 *             thread that a lost term has left behind, while its own process leads again;
 *   ONE       a term begins only when the one before has ended, and no guard of it is open;
 *   RESIGNED  a term that was given up never comes back, and giving up ends no other term;
 *   and no run gets stuck.
 *
 * The steps, by the names in django_dblock/sql/fencing.py: TAKE or ACQUIRE; RENEW, which is sent, and
 * run later; GUARD and the COMMIT of its transaction; RELEASE.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   CHECK_ONLY   no guard: the leader looks whether it believes in its term, and writes
 *   BY_OWNER     the guard asks who leads, and not for the token of the term
 *   RESIGN_ANY   giving up does not ask for the token
 *   KEEP_TOKEN   a process that is elected again gets its old token
 *   RENEW_ENDED  a renewal asks for the token, and not whether the term has ended
 *   PASS_GUARD   an election does not wait for an open guard of the last term
 *
 * SEE_TAKEOVER, SEE_AGAIN, SEE_REFUSAL, SEE_LATE say that something can't happen, which can.
 *
 * What is left out, and why nothing is lost by it: time (a term may end at any moment), and that a
 * guard asks for the expiry, as in rwlock.pml; who trusts what at which moment, the purge and the
 * operator, which lease.pml shows, because a term is a lease.
 */

#ifndef CANDIDATES
#define CANDIDATES 3
#endif
#ifndef TERMS
#define TERMS 3
#endif
#define NOBODY 9

byte token = 0;
bool live = false;
byte owner = NOBODY;
byte shared = 0;                  /* guards: FOR KEY SHARE */

/* What only the properties look at. */
byte terms = 0;
byte latest = 0;
byte committed = 0;               /* the latest token that committed */
bool resigned[TERMS + 2];

#ifdef BY_OWNER
#define OURS(t) (owner == me)
#else
#define OURS(t) (token == (t))
#endif
#ifdef PASS_GUARD
#define FREE (!live)
#else
#define FREE (!live && shared == 0)
#endif
#ifdef RENEW_ENDED
#define RENEWABLE (token == renewing)
#else
#define RENEWABLE (token == renewing && live)
#endif

inline work(t) {
    if
#ifdef CHECK_ONLY
    :: d_step { t != 0 -> shared++; guarded = t }
#else
    :: d_step { t != 0 && OURS(t) -> shared++; guarded = t }                  /* GUARD */
#endif
        if
        :: d_step { shared--;
            assert(guarded == latest);                                        /* COMMIT */
            assert(guarded >= committed);
            committed = guarded; guarded = 0 }
        :: d_step { shared--; guarded = 0 }                  /* rolled back */
        fi
    :: d_step { t != 0 && !OURS(t) -> t = 0;                                  /* LockLost */
#ifdef SEE_REFUSAL
        assert(false)
#endif
        }
    fi
}

proctype Candidate(byte me) {
    byte mine, left_behind, renewing, guarded;
#ifdef KEEP_TOKEN
    byte first;
#endif
end:
    do
    :: d_step {                                                               /* TAKE */
        mine == 0 && FREE && terms < TERMS ->
        terms++;
#ifdef SEE_TAKEOVER
        assert(owner == NOBODY || owner == me || resigned[token]);
#endif
#ifdef SEE_AGAIN
        assert(owner != me);
#endif
        assert(shared == 0 && !live);                                         /* ONE */
#ifdef KEEP_TOKEN
        if
        :: first == 0 -> first = token + 1; token = first
        :: else -> token = first
        fi;
#else
        token++;
#endif
        assert(token > latest);                                               /* TERMS */
        live = true; owner = me; latest = token; mine = token }
    :: d_step { mine != 0 && renewing == 0 -> renewing = mine }               /* RENEW is sent … */
    :: d_step { renewing != 0 && RENEWABLE -> live = true; renewing = 0;      /* … and run, */
        assert(!resigned[token]) }                                            /* RESIGNED */
    :: d_step { renewing != 0 && !RENEWABLE -> renewing = 0;                  /* in vain */
#ifdef SEE_LATE
        assert(!resigned[token])
#endif
        }
    :: mine != 0 -> work(mine)
    :: left_behind != 0 -> work(left_behind)
    :: d_step {                                                               /* RELEASE */
        mine != 0 ->
        if
#ifdef RESIGN_ANY
        :: true ->
#else
        :: token == mine ->
#endif
            assert(token == mine);                                            /* RESIGNED */
            live = false; resigned[token] = true
        :: token != mine
        fi;
        mine = 0 }
    :: d_step { mine != 0 && !live -> left_behind = mine; mine = 0 }          /* the term is lost */
    od
}

/* Terms end, whenever. */
proctype Time() {
end:
    do
    :: d_step { live -> live = false }
    od
}

init {
    byte i;
    atomic {
        for (i : 0 .. CANDIDATES - 1) { run Candidate(i) }
        run Time()
    }
    timeout;
    assert(shared == 0)                                                       /* AT REST */
}
