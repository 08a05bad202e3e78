/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeping of the time page.
 *
 * Each refresh takes a sample (TSC, host clock) whose uncertainty is half of the time it took, derives the rate from
 * samples one to two seconds apart, and begins a new segment at the instant `h`. `h` is read after seq became odd: all
 * readers of the old segment took their time stamps before it. The new segment starts
 *   - where the old one ended, when that is within the uncertainty of the sample;
 *   - ahead of it, when the old one was late;
 *   - where the old one ended and with a slower rate, when that was early: monotonic clocks never step back.
 * CLOCK_REALTIME and the like are CLOCK_MONOTONIC plus an offset that changes only when somebody sets the clock.
 */
#include "timepage.h"
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include "../../util/together.h"

#define NS_PER_SEC 1000000000LL
#define INTERVAL_MIN_NS 500000   /* time between refreshes while the rate is not known well */
#define INTERVAL_MAX_NS 50000000 /* and when it is */
#define BASELINE_NS NS_PER_SEC   /* least distance of the samples that give the rate */
#define GOOD_SAMPLE_TICKS 4000   /* a sample that took longer gives no rate */
#define STEP_NS 2000             /* an offset that falls by less is noise: REALTIME must not step back for it */
#define MAX_STRANGE 8            /* samples in a row that contradict the rate: the TSC is of no use */

/* One clock that the kernel derives from the TSC by a rate. */
struct track {
	clockid_t clk;
	uint64_t a_tsc[2]; /* anchors: samples from which the rate is measured, the older one first */
	int64_t a_ns[2];
	uint64_t rate;  /* ns per tick, 32.32 */
	uint64_t s_tsc; /* the last sample; s_half = its uncertainty in ticks */
	uint64_t s_half;
	int64_t s_ns;
	unsigned strange;
};

enum { OFF_REAL, OFF_TAI, OFF_BOOT, NR_OFF };

static KX_TOGETHER struct {
	pthread_mutex_t lock; /* all below, and writing to the page */
	bool ok;
	uint64_t due;      /* TSC of the next refresh; also read without the lock */
	uint64_t interval; /* ticks */
	struct track mono, raw;
	int64_t off[NR_OFF]; /* to CLOCK_MONOTONIC */
	struct kx_vvar cur;  /* what the page says */
} tp = { .lock = PTHREAD_MUTEX_INITIALIZER };

static uint64_t tsc_now(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

static int64_t host_ns(clockid_t clk)
{
	struct timespec ts = { 0 };

	clock_gettime(clk, &ts);
	return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

static int64_t ticks_to_ns(uint64_t ticks, uint64_t rate) { return (int64_t)((unsigned __int128)ticks * rate >> 32); }

static uint64_t ns_to_ticks(uint64_t ns, uint64_t rate) { return (uint64_t)(((unsigned __int128)ns << 32) / rate); }

/* Best of some tries: an interrupt or a lost CPU spoils one. */
static void track_sample(struct track *k, int tries)
{
	k->s_half = UINT64_MAX;
	for (int i = 0; i < tries; i++) {
		uint64_t t0 = tsc_now();
		int64_t ns = host_ns(k->clk);
		uint64_t half = (tsc_now() - t0 + 1) / 2;

		if (half < k->s_half) {
			k->s_half = half;
			k->s_tsc = t0 + half;
			k->s_ns = ns;
		}
	}
}

static void track_anchor(struct track *k)
{
	k->a_tsc[0] = k->a_tsc[1] = k->s_tsc;
	k->a_ns[0] = k->a_ns[1] = k->s_ns;
}

/* Rate from the last sample. Returns the length of the baseline in ns, 0 = nothing learnt. */
static int64_t track_rate(struct track *k)
{
	int64_t ns = k->s_ns - k->a_ns[0];
	uint64_t ticks = k->s_tsc - k->a_tsc[0], rate, diff;

	if (k->s_half > GOOD_SAMPLE_TICKS || (ns < INTERVAL_MIN_NS / 2 && ns >= 0))
		return 0;
	rate = ns <= 0 || (int64_t)ticks <= 0 ? 0 : (uint64_t)(((unsigned __int128)ns << 32) / ticks);
	diff = rate > k->rate ? rate - k->rate : k->rate - rate;
	if (diff > k->rate / 128) {
		/* Suspended or migrated; a rate that was wrong from the start is believed in the end. */
		if (rate && ++k->strange > MAX_STRANGE / 2)
			k->rate = rate;
		else if (!rate)
			k->strange++;
		track_anchor(k);
		return 0;
	}
	k->strange = 0;
	k->rate = rate;
	if (k->s_ns - k->a_ns[1] >= BASELINE_NS) {
		k->a_tsc[0] = k->a_tsc[1];
		k->a_ns[0] = k->a_ns[1];
		k->a_tsc[1] = k->s_tsc;
		k->a_ns[1] = k->s_ns;
	}
	return ns;
}

/* Keep the offset of clk while the host's clocks agree with it. Returns true when it was replaced. */
static bool offset_update(int64_t *off, clockid_t clk)
{
	int64_t before = host_ns(CLOCK_MONOTONIC), ns = host_ns(clk), after = host_ns(CLOCK_MONOTONIC);
	int64_t lo = ns - after, hi = ns - before;

	if (*off >= lo && *off <= hi)
		return false;
	if (*off < lo)
		*off = lo - *off > STEP_NS ? lo + (hi - lo) / 2 : lo;
	else if (*off - hi > STEP_NS)
		*off = lo + (hi - lo) / 2;
	else
		return false;
	return true;
}

static void offsets_update(void)
{
	offset_update(&tp.off[OFF_REAL], CLOCK_REALTIME);
	offset_update(&tp.off[OFF_TAI], CLOCK_TAI);
	offset_update(&tp.off[OFF_BOOT], CLOCK_BOOTTIME);
}

/* The offsets are constants: the intersection of several looks is much narrower than one. */
static void offset_init(int64_t *off, clockid_t clk)
{
	int64_t lo = INT64_MIN, hi = INT64_MAX;

	for (int i = 0; i < 16; i++) {
		int64_t before = host_ns(CLOCK_MONOTONIC), ns = host_ns(clk), after = host_ns(CLOCK_MONOTONIC);

		if (ns - after > hi || ns - before < lo) { /* the clock was set meanwhile */
			lo = INT64_MIN;
			hi = INT64_MAX;
		}
		lo = ns - after > lo ? ns - after : lo;
		hi = ns - before < hi ? ns - before : hi;
	}
	*off = lo + (hi - lo) / 2;
}

/* Where the segment (base, ns, mult) can have been read last, at h or when it ended. */
static int64_t segment_end(uint64_t base, int64_t ns, uint64_t mult, uint64_t h)
{
	uint64_t delta = h - base;

	if ((int64_t)delta < 0)
		delta = 0;
	return ns + ticks_to_ns(delta > tp.cur.max_delta ? tp.cur.max_delta : delta, mult);
}

/* Start and rate of the segment that begins at h, `last` being the end of the previous one. */
static int64_t segment_begin(const struct track *k, int64_t last, uint64_t h, uint64_t *mult)
{
	int64_t true_ns = k->s_ns + ticks_to_ns(h - k->s_tsc, k->rate);
	int64_t half = ticks_to_ns(k->s_half, k->rate) + 1, late = true_ns - last;
	uint64_t slow;

	*mult = k->rate;
	if (late > half)
		return late > INTERVAL_MAX_NS ? true_ns : true_ns - half;
	if (late >= -half)
		return last;
	/* Early: meet the clock after INTERVAL_MAX_NS, or later when that needs too different a rate. */
	slow = (uint64_t)(((unsigned __int128)k->rate * (uint64_t)(-late - half)) / INTERVAL_MAX_NS);
	*mult -= slow < k->rate / 16 ? slow : k->rate / 16;
	return last;
}

/* Write the page under its seqlock. Nothing in here may take long: readers wait. */
static void publish(struct kx_vvar *v)
{
	struct kx_vvar *c = &tp.cur;
	int64_t mono, raw, boot, last_boot;
	uint64_t h, mult, raw_mult, max_delta = 2 * tp.interval;

	__atomic_store_n(&v->seq, c->seq + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* seen as odd by all before h is taken */
	h = tsc_now();
	mono = segment_begin(&tp.mono, segment_end(c->tsc_base, c->mono_ns, c->mult, h), h, &mult);
	raw = segment_begin(&tp.raw, segment_end(c->raw_tsc_base, c->raw_ns, c->raw_mult, h), h, &raw_mult);
	boot = mono + tp.off[OFF_BOOT];
	last_boot = segment_end(c->tsc_base, c->boot_ns, c->mult, h);

	c->valid = tp.ok;
	c->tsc_base = c->raw_tsc_base = h;
	c->mult = mult;
	c->raw_mult = raw_mult;
	c->max_delta = max_delta;
	c->mono_ns = mono;
	c->boot_ns = boot > last_boot ? boot : last_boot;
	c->real_ns = mono + tp.off[OFF_REAL];
	c->tai_ns = mono + tp.off[OFF_TAI];
	c->raw_ns = raw;
	c->seq += 2;

	__atomic_store_n(&v->valid, c->valid, __ATOMIC_RELAXED);
	__atomic_store_n(&v->tsc_base, c->tsc_base, __ATOMIC_RELAXED);
	__atomic_store_n(&v->mult, c->mult, __ATOMIC_RELAXED);
	__atomic_store_n(&v->max_delta, c->max_delta, __ATOMIC_RELAXED);
	__atomic_store_n(&v->real_ns, c->real_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&v->mono_ns, c->mono_ns, __ATOMIC_RELAXED);
	const int64_t both[2] = { c->real_ns, c->mono_ns };
	for (int i = 0; i < 2; i++) {
		__atomic_store_n(&v->fast[i].sec, both[i] / 1000000000, __ATOMIC_RELAXED);
		__atomic_store_n(&v->fast[i].nsec, both[i] % 1000000000, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&v->boot_ns, c->boot_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&v->tai_ns, c->tai_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&v->raw_tsc_base, c->raw_tsc_base, __ATOMIC_RELAXED);
	__atomic_store_n(&v->raw_mult, c->raw_mult, __ATOMIC_RELAXED);
	__atomic_store_n(&v->raw_ns, c->raw_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&v->seq, c->seq, __ATOMIC_RELEASE);
	__atomic_store_n(&tp.due, h + tp.interval, __ATOMIC_RELAXED);
}

/* Look at the host's clocks and begin a new segment. Lock held. */
static void refresh(struct kx_vvar *v)
{
	int64_t baseline;

	track_sample(&tp.mono, 3);
	track_sample(&tp.raw, 3);
	offsets_update();
	baseline = track_rate(&tp.mono);
	track_rate(&tp.raw);
	if (tp.mono.strange > MAX_STRANGE || tp.raw.strange > MAX_STRANGE)
		tp.ok = false;
	/* The error of the rate falls with the baseline: after a time as long again it is as small as a sample's. */
	if (baseline) {
		baseline = baseline < INTERVAL_MIN_NS ? INTERVAL_MIN_NS : baseline;
		baseline = baseline > INTERVAL_MAX_NS ? INTERVAL_MAX_NS : baseline;
		tp.interval = ns_to_ticks((uint64_t)baseline, tp.mono.rate);
	}
	publish(v);
}

/* On the path of every exit: without the fence that an exact time stamp needs. */
static bool is_due(void) { return (int64_t)(__builtin_ia32_rdtsc() - __atomic_load_n(&tp.due, __ATOMIC_RELAXED)) >= 0; }

/* Rate by waiting, when nobody knows it. */
static uint64_t rate_measure(void)
{
	struct track k = { .clk = CLOCK_MONOTONIC };

	track_sample(&k, 3);
	track_anchor(&k);
	while (host_ns(CLOCK_MONOTONIC) - k.a_ns[0] < 2000000)
		__builtin_ia32_pause();
	track_sample(&k, 3);
	if (k.s_tsc <= k.a_tsc[0])
		return 0;
	return (uint64_t)(((unsigned __int128)(uint64_t)(k.s_ns - k.a_ns[0]) << 32) / (k.s_tsc - k.a_tsc[0]));
}

void timepage_init(struct kx_vvar *v, bool tsc_ok, uint32_t tsc_khz)
{
	uint64_t rate;

	pthread_mutex_lock(&tp.lock);
	memset(&tp.cur, 0, sizeof(tp.cur));
	memset(&tp.mono, 0, sizeof(tp.mono));
	memset(&tp.raw, 0, sizeof(tp.raw));
	tp.cur.seq = __atomic_load_n(&v->seq, __ATOMIC_RELAXED) & ~1u;
	tp.ok = false;
	if (!tsc_ok)
		goto out;
	rate = tsc_khz ? (uint64_t)(((unsigned __int128)1000000 << 32) / tsc_khz) : rate_measure();
	if (rate < 1u << 28 || rate >> 37) /* 32 MHz to 16 GHz: delta * mult fits 64 bits with room to spare */
		goto out;
	tp.ok = true;
	tp.mono.clk = CLOCK_MONOTONIC;
	tp.raw.clk = CLOCK_MONOTONIC_RAW;
	tp.mono.rate = tp.raw.rate = rate;
	tp.interval = ns_to_ticks(INTERVAL_MIN_NS, rate);
	offset_init(&tp.off[OFF_REAL], CLOCK_REALTIME);
	offset_init(&tp.off[OFF_TAI], CLOCK_TAI);
	offset_init(&tp.off[OFF_BOOT], CLOCK_BOOTTIME);
	track_sample(&tp.mono, 5);
	track_sample(&tp.raw, 5);
	track_anchor(&tp.mono);
	track_anchor(&tp.raw);
	publish(v);
out:
	if (!tp.ok)
		__atomic_store_n(&v->valid, 0, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&tp.lock);
}

bool timepage_host_tsc(void)
{
	char name[8] = "";
	int fd = open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (read(fd, name, sizeof(name) - 1) < 0)
		name[0] = 0;
	close(fd);
	return !strcmp(name, "tsc\n");
}

void timepage_update(struct kx_vvar *v)
{
	if (!__atomic_load_n(&tp.ok, __ATOMIC_RELAXED) || !is_due() || pthread_mutex_trylock(&tp.lock))
		return;
	if (tp.ok && is_due())
		refresh(v);
	pthread_mutex_unlock(&tp.lock);
}

bool timepage_gettime(struct kx_vvar *v, int clk, struct timespec *ts)
{
	const struct kx_vvar *c = &tp.cur;
	int64_t ns = -1;
	uint64_t now;

	pthread_mutex_lock(&tp.lock);
	if (tp.ok && is_due())
		refresh(v);
	if (tp.ok) {
		now = tsc_now();
		switch (clk) {
		case CLOCK_MONOTONIC:
		case CLOCK_MONOTONIC_COARSE:
			ns = segment_end(c->tsc_base, c->mono_ns, c->mult, now);
			break;
		case CLOCK_REALTIME:
		case CLOCK_REALTIME_COARSE:
			ns = segment_end(c->tsc_base, c->real_ns, c->mult, now);
			break;
		case CLOCK_BOOTTIME:
			ns = segment_end(c->tsc_base, c->boot_ns, c->mult, now);
			break;
		case CLOCK_TAI:
			ns = segment_end(c->tsc_base, c->tai_ns, c->mult, now);
			break;
		case CLOCK_MONOTONIC_RAW:
			ns = segment_end(c->raw_tsc_base, c->raw_ns, c->raw_mult, now);
			break;
		}
	}
	pthread_mutex_unlock(&tp.lock);
	if (ns < 0)
		return false;
	ts->tv_sec = ns / NS_PER_SEC;
	ts->tv_nsec = ns % NS_PER_SEC;
	return true;
}

void timepage_fork_lock(void) { pthread_mutex_lock(&tp.lock); }
void timepage_fork_unlock(void) { pthread_mutex_unlock(&tp.lock); }
