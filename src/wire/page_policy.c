#include "wire/page_policy.h"

void page_policy_restart_window(struct page_policy *p)
{
	p->batches = 0;
	p->wait_us = 0;
	p->raw_bytes = 0;
	p->last_us = 0;
}

static void switch_off(struct page_policy *p)
{
	p->on = false;
	p->misses = 0;
	p->off_for = p->off_next ? p->off_next : PAGE_POLICY_OFF_FIRST;
	p->off_next = p->off_for * 2 < PAGE_POLICY_OFF_MOST ? p->off_for * 2 : PAGE_POLICY_OFF_MOST;
	page_policy_restart_window(p);
}

static void end_window(struct page_policy *p, uint64_t elapsed_us)
{
	uint64_t bytes_s = elapsed_us ? p->raw_bytes * 1000000 / elapsed_us : 0;

	if (!p->on) {
		p->plain_bytes_s = bytes_s;
		if (p->off_for)
			p->off_for--;
		else if (p->wait_us >= elapsed_us / 4)
			p->on = true;
		p->on_windows = 0;
	} else if (bytes_s < p->plain_bytes_s / 10 * 11) {
		switch_off(p);
	} else {
		p->off_next = 0;
		/* off with nothing to wait out: one raw window, then on again if it still pays */
		if (++p->on_windows >= PAGE_POLICY_PROBE)
			p->on = false;
	}
}

void page_policy_sent(struct page_policy *p, uint64_t now_us, uint64_t raw_bytes,
		      uint64_t wire_bytes, uint64_t wait_us)
{
	if (!raw_bytes)
		return;
	/* the first batch after a pause only marks where the window starts */
	if (!p->last_us || now_us - p->last_us > PAGE_POLICY_PAUSE_US + wait_us) {
		page_policy_restart_window(p);
		p->start_us = p->last_us = now_us;
		return;
	}
	p->last_us = now_us;
	if (p->on) {
		p->misses = wire_bytes > raw_bytes / 10 * 9 ? p->misses + 1 : 0;
		if (p->misses >= 2) {
			switch_off(p);
			return;
		}
	}
	p->wait_us += wait_us;
	p->raw_bytes += raw_bytes;
	if (++p->batches < PAGE_POLICY_WINDOW)
		return;
	end_window(p, now_us - p->start_us);
	p->batches = 0;
	p->wait_us = p->raw_bytes = 0;
	p->start_us = now_us;
}
