#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64);} m SEC(".maps");
SEC("xdp") int p(struct xdp_md *c){ (void)c; __u32 k=0; __u64*v=bpf_map_lookup_elem(&m,&k); if(v) __sync_fetch_and_add(v,1); return XDP_PASS;}
char LICENSE[] SEC("license")="GPL";
