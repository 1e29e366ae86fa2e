/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The built-in rules (src/fastsocket/steer/rules/) once more, in C: what 'fastsocket bench steer'
 * compares the generated code with. Tables have the slots in the order of the rule files.
 */
#define RULE static inline __attribute__((always_inline, unused)) __s64

static inline __s64 set_size(void)
{
	return steer_settings.cpus;
}

RULE rule_hash(const struct packet *p)
{
	__u32 cpus = set_size();

	return cpus ? (__u32)field_hash(p) % cpus : -1;
}

RULE rule_symmetric_hash(const struct packet *p)
{
	__u32 cpus = set_size();

	return cpus ? (__u32)field_symmetric_hash(p) % cpus : -1;
}

RULE rule_rfd(const struct packet *p)
{
	__s64 cpu;

	if (field_proto(p) != IPPROTO_TCP || field_dport(p) < 1024)
		return -1;
	cpu = array_0_get(field_dport(p) >> 6, 0) - 1;
	if (cpu >= 0 && field_sport(p) >= 1024 && field_listening(p))
		return -1;
	return cpu;
}

RULE rule_receive_cpu(const struct packet *p)
{
	return table_0_get(field_flow(p), -1);
}

RULE rule_round_robin(const struct packet *p)
{
	__s64 flow = field_flow(p);
	__s64 cpu = table_0_get(flow, -1);
	__u64 cpus = set_size();

	if (cpu < 0 && cpus) {
		cpu = (__u64)counter_add(0, 1) % cpus;
		table_0_set(flow, cpu);
	}
	return cpu;
}

RULE rule_least_loaded(const struct packet *p)
{
	__s64 flow = field_flow(p);
	__s64 cpu = table_0_get(flow, -1);
	__s64 cpus = set_size();
	__s64 clock, age, load, least;

	if (cpu < 0 || cpu >= cpus) {
		clock = field_now(p) >> 7 & 0xffffff;
		age = (clock - array_1_get(0, 0)) & 0xffffff;
		if (age > 31)
			age = 31;
		if (age > 0) {
			array_1_set(0, clock);
			for (int i = 0; i < cpus && i < STEER_MAX_CPUS; i++)
				array_0_set(i, array_0_get(i, 0) >> age);
		}
		cpu = 0;
		least = array_0_get(0, 0);
		for (int i = 1; i < cpus && i < STEER_MAX_CPUS; i++) {
			load = array_0_get(i, 0);
			if (load < least) {
				least = load;
				cpu = i;
			}
		}
		table_0_set(flow, cpu);
	}
	array_0_add(cpu, (field_length(p) >> 6) + 1);
	return cpu;
}

RULE rule_tenant(const struct packet *p)
{
	return prefixes_0_get_src(p, -1);
}
